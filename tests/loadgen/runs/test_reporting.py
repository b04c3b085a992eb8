"""What stands beside the figures of a run: ideals of what was planned, or in a closed loop of what was asked."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterable, Sequence

from rich.console import Console

from loadgen.commands.run import Asking, ideals_unless_interrupted
from loadgen.plans.plan import Piece, Plan, Session, Turn
from loadgen.plans.prompts import Prompts
from loadgen.records import Record
from loadgen.reports.schema import Slo, Validity
from loadgen.reports.terminal import warnings
from loadgen.runs.interrupts import Interrupts
from loadgen.runs.once import RunResult
from loadgen.runs.options import Measure
from loadgen.runs.reporting import ideals_of, report_of
from loadgen.runs.target import Target

TARGET = Target("t", ("http://127.0.0.1:1",), "m")
MEASURE = Measure(Slo(), 0.02, 30.0, (), None, False)
SESSIONS = tuple(Session(0.0, (Turn((Piece(0, 33),), 1),)) for _ in range(10))


def reported(sent: int, concurrency: int | None = None, interrupted: str | None = None) -> Validity:
    plan = Plan("test", 1, {}, 1.0, (*SESSIONS, Session(1.0, SESSIONS[0].turns)), concurrency=concurrency)
    records = [Record(session, 0, 0.0, 0.0, 1.0) for session in range(sent)]
    return report_of(TARGET, plan, RunResult(records, [], (), interrupted, ""), MEASURE).validity


def test_a_run_that_did_not_begin_every_session_that_was_due_is_invalid() -> None:
    assert reported(sent=10).valid
    assert reported(sent=8).reasons == (
        "2 sessions whose time had come were never begun: the client could not keep up",
    )
    assert reported(sent=8, concurrency=4).valid
    assert reported(sent=8, interrupted="SIGINT").reasons == ("it was interrupted: SIGINT",)


def remarks(concurrency: int | None, ends: Sequence[float], error: str = "", turns: int = 1) -> tuple[str, ...]:
    """Of a run of 10 s in which the first request of each session ended then."""
    sessions = tuple(Session(0.0, SESSIONS[0].turns * turns) for _ in ends)
    plan = Plan("test", 1, {}, 10.0, sessions, concurrency=concurrency)
    records = [Record(session, 0, 0.0, 0.0, end, error=error) for session, end in enumerate(ends)]
    report = report_of(TARGET, plan, RunResult(records, [], (), None, ""), MEASURE)
    assert list(report.remarks) == [line.removeprefix("t: ") for line in warnings({"t": report}) if "ran out" in line]
    return report.remarks


def test_a_closed_loop_that_ran_out_of_sessions_says_since_when() -> None:
    (said,) = remarks(2, [1.0, 2.0, 3.0, 4.5])
    assert "from 3.0 s on fewer than 2 at once were under way; from 4.5 s on none was, of 10 s asked for" in said
    (said,) = remarks(2, [1.0, 2.0, 3.0, 12.0])
    assert "from 3.0 s on fewer than 2 at once were under way, of 10 s asked for; there were 4 (--sessions" in said
    (said,) = remarks(8, [1.0, 2.0])
    assert "from 0.0 s on fewer than 8" in said


def test_a_closed_loop_whose_places_were_all_taken_says_nothing() -> None:
    assert remarks(2, [1.0, 2.0, 11.0, 12.0]) == ()
    assert remarks(None, [1.0, 2.0]) == ()
    assert remarks(2, [1.0, 2.0], turns=2) == ()  # their next turns are still to come
    assert len(remarks(2, [1.0, 2.0], turns=2, error="HTTP 500")) == 1  # a failure ends a session


def ideal(concurrency: int | None) -> float | None:
    plan = Plan("test", 1, {}, 1.0, SESSIONS, concurrency=concurrency)
    records = [Record(session, 0, 0.0, sent=1.0 - session, end=2.0) for session in (0, 1)]
    return ideals_of(plan, Prompts(plan, "tokens", "planned"), TARGET, records)["infinite"]


def test_whoever_does_not_wait_for_the_ideals_gets_the_rest() -> None:
    with Interrupts() as interrupts:

        class Impatient(Prompts):
            def tokens(self, pieces: Iterable[Piece]) -> list[int]:
                signal.raise_signal(signal.SIGINT)
                return super().tokens(pieces)

        async def nothing() -> None:
            return

        interrupts.run(nothing())
        plan, console = Plan("test", 1, {}, 1.0, SESSIONS), Console(file=io.StringIO(), width=120)
        asking = Asking(plan, Impatient(plan, "tokens", "planned"), MEASURE)
        done = RunResult([], [], (), None, "")
        assert ideals_unless_interrupted(asking, TARGET, done, interrupts, console) is None
    assert isinstance(console.file, io.StringIO)
    assert "--no-ideals" in console.file.getvalue()


def test_an_open_loops_ideal_is_of_the_plan_and_a_closed_ones_of_what_was_sent() -> None:
    assert ideal(None) == 9 * 32 / 330
    assert ideal(4) == 32 / 66
