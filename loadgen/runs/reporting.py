"""From what a run brought to its report.

Owns what is beside the figures: ideals, remarks, and that a run which was interrupted, or not asked in full, is not
valid. Must never ask anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from loadgen.plans.ideals import ideal_hit_rates
from loadgen.plans.order import in_order
from loadgen.plans.plan import Plan, Session
from loadgen.plans.prompts import Prompts
from loadgen.records import Record
from loadgen.reports.figures import Setting, run_report
from loadgen.reports.schema import RunReport, Validity
from loadgen.runs.once import RunResult
from loadgen.runs.options import Measure
from loadgen.runs.target import Target

# Of the bundled replicas and of most engines; smaller blocks would find a little more.
BLOCK_TOKENS = 16


def ideals_of(
    plan: Plan,
    prompts: Prompts,
    target: Target,
    records: Sequence[Record],
    check: Callable[[], None] = lambda: None,
) -> dict[str, float | None]:
    """Hit rates to judge a routing by: of an infinite cache, and of all the fleet's memory as one where known.

    Of an open loop's plan. A closed loop's has more than is asked in the time, by how much is up to the server: there
    they are of the requests that were sent. A long trace's take a minute: `check` is called at each request, and what
    it raises ends the work.
    """
    sent = sorted(records, key=lambda record: record.sent)
    asked = in_order(plan) if plan.concurrency is None else [(plan.sessions[each.session], each.turn) for each in sent]
    pooled = target.capacity_tokens * target.replicas if target.capacity_tokens and target.replicas else None
    return dict(ideal_hit_rates(plan, prompts, BLOCK_TOKENS, pooled, _checked(asked, check)))


def _checked(asked: Iterable[tuple[Session, int]], check: Callable[[], None]) -> Iterator[tuple[Session, int]]:
    for each in asked:
        check()
        yield each


def report_of(
    target: Target,
    plan: Plan,
    result: RunResult,
    measure: Measure,
    ideals: dict[str, float | None] | None = None,
    regret_mean_s: float | None = None,
) -> RunReport:
    """The report; one that is marked invalid when the run was interrupted, or could not send what was due."""
    setting = Setting(
        measure.slo,
        measure.max_lag_s,
        ideals or {},
        result.events,
        regret_mean_s=regret_mean_s,
        computed=result.work.computed,
        computed_unknown=result.work.unknown,
    )
    report = run_report(target, plan, result.records, setting)
    if result.interrupted is None and (ran_out := _ran_out(plan, result.records)):
        report = msgspec.structs.replace(report, remarks=(ran_out,))
    if result.interrupted is not None:
        return _invalid(report, f"it was interrupted: {result.interrupted}")
    if unsent := _unsent(plan, result.records):
        return _invalid(report, f"{unsent} sessions whose time had come were never begun: the client could not keep up")
    return report


def _unsent(plan: Plan, records: Sequence[Record]) -> int:
    """Sessions of an open loop of which nothing was sent."""
    if plan.concurrency is not None:
        return 0
    return sum(session.start_s < plan.duration_s for session in plan.sessions) - len({each.session for each in records})


def _ran_out(plan: Plan, records: Sequence[Record]) -> str:
    """What is to be said of a closed loop in which a place found no session any more, "" where none did."""
    over: dict[int, float] = {}
    for record in records:
        if record.error or record.turn + 1 == len(plan.sessions[record.session].turns):
            over[record.session] = record.end
    idle = len(plan.sessions) - (plan.concurrency or 0)
    ends = sorted(end for end in over.values() if end < plan.duration_s)
    if plan.concurrency is None or idle >= len(ends):
        return ""
    none_left = f"; from {ends[-1]:.1f} s on none was" if len(ends) == len(plan.sessions) else ""
    return (
        f"the sessions ran out: from {ends[idle] if idle >= 0 else 0.0:.1f} s on fewer than {plan.concurrency} at once "
        f"were under way{none_left}, of {plan.duration_s:g} s asked for; there were {len(plan.sessions)} "
        "(--sessions; a trace has no more than its own)"
    )


def _invalid(report: RunReport, reason: str) -> RunReport:
    return msgspec.structs.replace(report, validity=Validity(False, (reason, *report.validity.reasons)))
