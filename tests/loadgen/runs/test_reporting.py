"""What stands beside the figures of a run: ideals of what was planned, or in a closed loop of what was asked."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console

from loadgen.commands.run import Asking, ideals_unless_interrupted
from loadgen.plans.plan import Piece, Plan, Session, Turn
from loadgen.plans.prompts import Prompts
from loadgen.records import Record
from loadgen.reports.schema import Slo, Validity
from loadgen.runs.once import RunResult
from loadgen.runs.options import Measure
from loadgen.runs.reporting import ideals_of, report_of
from loadgen.runs.target import Target

TARGET = Target("t", ("http://127.0.0.1:1",), "m")
MEASURE = Measure(Slo(), 0.02, 30.0, (), None, False)
SESSIONS = tuple(Session(0.0, (Turn((Piece(0, 33),), 1),)) for _ in range(10))


def reported(sent: int, concurrency: int | None = None, interrupted: str | None = None) -> Validity:
    plan = Plan("test", 1, {}, 1.0, (*SESSIONS, Session(1.0, SESSIONS[0].turns)), concurrency=concurrency)
    records = [Record(session, 0, 0, 0.0, 0.0, 1.0) for session in range(sent)]
    return report_of(TARGET, plan, RunResult(records, [], (), interrupted, ""), MEASURE).validity


def test_a_run_that_did_not_begin_every_session_that_was_due_is_invalid() -> None:
    assert reported(sent=10).valid
    assert reported(sent=8).reasons == (
        "2 sessions whose time had come were never begun: the client could not keep up",
    )
    assert reported(sent=8, concurrency=4).valid
    assert reported(sent=8, interrupted="SIGINT").reasons == ("it was interrupted: SIGINT",)


def ideal(concurrency: int | None) -> float | None:
    plan = Plan("test", 1, {}, 1.0, SESSIONS, concurrency=concurrency)
    records = [Record(session, 0, 0, 0.0, sent=1.0 - session, end=2.0) for session in (0, 1)]
    return ideals_of(plan, Prompts(plan, "tokens", "planned"), TARGET, records)["infinite"]


def test_whoever_does_not_wait_for_the_ideals_gets_the_rest() -> None:
    class Interrupted(Prompts):
        def tokens(self, pieces: Iterable[Piece]) -> list[int]:
            raise KeyboardInterrupt

    plan, console = Plan("test", 1, {}, 1.0, SESSIONS), Console(file=io.StringIO(), width=120)
    asking = Asking(plan, Interrupted(plan, "tokens", "planned"), MEASURE)
    assert ideals_unless_interrupted(asking, TARGET, RunResult([], [], (), None, ""), console) is None
    assert isinstance(console.file, io.StringIO)
    assert "--no-ideals" in console.file.getvalue()


def test_an_open_loops_ideal_is_of_the_plan_and_a_closed_ones_of_what_was_sent() -> None:
    assert ideal(None) == 9 * 32 / 330
    assert ideal(4) == 32 / 66
