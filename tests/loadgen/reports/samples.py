"""Records, plans and targets for the reports' tests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from hypothesis import strategies as st

from loadgen.plans.plan import Piece, Plan, Session, Turn
from loadgen.records import Record
from loadgen.reports.figures import Setting, run_report
from loadgen.reports.schema import RunReport
from loadgen.runs.target import Target


def record(
    due: float = 0.0,
    lag: float = 0.0,
    ttft: float = 0.1,
    tpot: float = 0.02,
    tokens: int = 11,
    prompt: int = 100,
    cached: int = 0,
    replica: str = "r0",
    error: str = "",
    predicted: int | None = None,
    reports_cached: bool = True,
) -> Record:
    """A request due at `due` whose first token came `ttft` later, then one every `tpot` seconds."""
    times = tuple(due + ttft + tpot * index for index in range(tokens))
    return Record(
        session=0,
        turn=0,
        due=due,
        sent=due + lag,
        end=times[-1],
        token_times=times,
        status=200,
        error=error,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=tokens,
        replica=replica,
        predicted_tokens=predicted,
        reports_cached=reports_cached,
    )


def failure(due: float = 0.0, end: float = 1.0, error: str = "HTTP 503", replica: str = "") -> Record:
    return Record(session=0, turn=0, due=due, sent=due, end=end, status=503, error=error, replica=replica)


def target(name: str = "kv", model: str = "simulated", replicas: int | None = 2) -> Target:
    return Target(
        name=name,
        urls=("http://somebody:secret@127.0.0.1:8000",),
        model=model,
        headers={"authorization": "Bearer secret"},
        replicas=replicas,
        capacity_tokens=1000,
        description=f"radixgate serve --policy {name}",
    )


def plan(duration_s: float = 10.0, concurrency: int | None = None, workload: str = "rag") -> Plan:
    turns = (Turn(pieces=(Piece(0, 8),), output_tokens=4),)
    return Plan(
        workload=workload,
        seed=1,
        parameters={"zipf": 1.1},
        duration_s=duration_s,
        sessions=(Session(start_s=0.0, turns=turns),),
        concurrency=concurrency,
    )


def report(records: Sequence[Record], setting: Setting | None = None, name: str = "kv") -> RunReport:
    return run_report(target(name), plan(), records, setting or Setting())


_TIMES = st.floats(0, 1e4)


@st.composite
def any_record(draw: st.DrawFn) -> Record:
    """Whatever a client may see: late, failed, cut short, without counts, without a replica's name."""
    due, lag, after = draw(_TIMES), draw(_TIMES), draw(_TIMES)
    gaps = draw(st.lists(_TIMES, max_size=5))
    times = tuple(accumulate(gaps, initial=due + lag))[1:]
    prompt = draw(st.integers(0, 10_000))
    return Record(
        session=draw(st.integers(0, 5)),
        turn=0,
        due=due,
        sent=due + lag,
        end=(times[-1] if times else due + lag) + after,
        token_times=times,
        error=draw(st.sampled_from(["", "reset"])),
        prompt_tokens=prompt,
        cached_tokens=draw(st.integers(0, prompt)),
        completion_tokens=draw(st.integers(0, 10)),
        replica=draw(st.sampled_from(["", "r0", "r1"])),
        predicted_tokens=draw(st.none() | st.integers(0, 10_000)),
        reports_cached=draw(st.booleans()),
    )
