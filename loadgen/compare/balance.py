"""How evenly each side's replicas were loaded, from one source for all sides: the replicas' own counters.

Owns these two figures of a comparison, and why a side has none. Must never fall back on what answers say: some routers
name the replica and others do not, and figures of two sources do not compare.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.compare.estimates import ENOUGH_REPETITIONS, over_repetitions
from loadgen.compare.schema import Estimate, RunMetric
from loadgen.reports.schema import RunReport
from loadgen.reports.statistics import mean

FIGURES = ("balance_tokens", "balance_requests")


def balance_metrics(baseline: Sequence[RunReport], side: Sequence[RunReport]) -> tuple[RunMetric, ...]:
    """Parallel, a run a repetition. A whole run's balance has an interval over repetitions or none: there is no saying
    which session made it.
    """
    return tuple(_metric(figure, baseline, side) for figure in FIGURES)


def unknown_balances(runs: Sequence[tuple[str, RunReport]]) -> list[str]:
    """Of which sides a run has no balance, and why: a note for each reason. `runs` are by the side's name."""
    without: dict[str, dict[str, None]] = {}
    for name, report in runs:
        if not report.computed:
            without.setdefault(report.computed_unknown, {})[name] = None
    return [f"no balance of {', '.join(names)}: {why}" for why, names in without.items()]


def _metric(figure: str, baseline: Sequence[RunReport], side: Sequence[RunReport]) -> RunMetric:
    before, after = ([_value(figure, report) for report in reports] for reports in (baseline, side))
    differences = [
        ours - theirs for theirs, ours in zip(before, after, strict=True) if ours is not None and theirs is not None
    ]
    enough = len(differences) >= ENOUGH_REPETITIONS
    found = over_repetitions(differences) if enough else Estimate(mean(differences), samples=len(differences))
    return RunMetric(figure, "lower", _mean(before), _mean(after), found)


def _value(figure: str, report: RunReport) -> float | None:
    return getattr(report.figures, figure) if report.computed else None


def _mean(values: Sequence[float | None]) -> float | None:
    return mean([value for value in values if value is not None])
