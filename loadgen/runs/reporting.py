"""From what a run brought to its report.

Owns what is beside the figures: ideals, and that a run which was interrupted, or not asked in full, is not valid. Must
never ask anybody.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadgen.plans.ideals import ideal_hit_rates
from loadgen.plans.plan import Plan
from loadgen.plans.prompts import Prompts
from loadgen.records import Record
from loadgen.reports.figures import Setting, run_report
from loadgen.reports.schema import RunReport, Validity
from loadgen.runs.once import RunResult
from loadgen.runs.options import Measure
from loadgen.runs.target import Target

# Of the bundled replicas and of most engines; smaller blocks would find a little more.
BLOCK_TOKENS = 16


def ideals_of(plan: Plan, prompts: Prompts, target: Target, records: Sequence[Record]) -> dict[str, float | None]:
    """Hit rates to judge a routing by: of an infinite cache, and of all the fleet's memory as one where known.

    Of an open loop's plan. A closed loop's has more than is asked in the time, by how much is up to the server: there
    they are of the requests that were sent.
    """
    sent = sorted(records, key=lambda record: record.sent)
    asked = None if plan.concurrency is None else [(plan.sessions[each.session], each.turn) for each in sent]
    pooled = target.capacity_tokens * target.replicas if target.capacity_tokens and target.replicas else None
    return dict(ideal_hit_rates(plan, prompts, BLOCK_TOKENS, pooled, asked))


def report_of(
    target: Target,
    plan: Plan,
    result: RunResult,
    measure: Measure,
    ideals: dict[str, float | None] | None = None,
    regret_mean_s: float | None = None,
) -> RunReport:
    """The report; one that is marked invalid when the run was interrupted, or could not send what was due."""
    setting = Setting(measure.slo, measure.max_lag_s, ideals or {}, result.events, regret_mean_s=regret_mean_s)
    report = run_report(target, plan, result.records, setting)
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


def _invalid(report: RunReport, reason: str) -> RunReport:
    return msgspec.structs.replace(report, validity=Validity(False, (reason, *report.validity.reasons)))
