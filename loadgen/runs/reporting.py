"""From what a run brought to its report.

Owns what is beside the figures: ideals, and that a run which was interrupted is not valid. Must never ask anybody.
"""

from __future__ import annotations

import msgspec

from loadgen.plans.ideals import ideal_hit_rates
from loadgen.plans.plan import Plan
from loadgen.plans.prompts import Prompts
from loadgen.reports.figures import Setting, run_report
from loadgen.reports.schema import RunReport, Validity
from loadgen.runs.once import RunResult
from loadgen.runs.options import Measure
from loadgen.runs.target import Target

# Of the bundled replicas and of most engines; smaller blocks would find a little more.
BLOCK_TOKENS = 16


def ideals_of(plan: Plan, prompts: Prompts, target: Target) -> dict[str, float | None]:
    """Hit rates that no routing can exceed: of an infinite cache, and of all the fleet's memory as one where known."""
    pooled = target.capacity_tokens * target.replicas if target.capacity_tokens and target.replicas else None
    return dict(ideal_hit_rates(plan, prompts, BLOCK_TOKENS, pooled))


def report_of(
    target: Target,
    plan: Plan,
    result: RunResult,
    measure: Measure,
    ideals: dict[str, float | None] | None = None,
    regret_mean_s: float | None = None,
) -> RunReport:
    """The report; one that is marked invalid when the run was interrupted."""
    setting = Setting(measure.slo, measure.max_lag_s, ideals or {}, result.events, regret_mean_s=regret_mean_s)
    report = run_report(target, plan, result.records, setting)
    if result.interrupted is None:
        return report
    reasons = (f"it was interrupted: {result.interrupted}", *report.validity.reasons)
    return msgspec.structs.replace(report, validity=Validity(False, reasons))
