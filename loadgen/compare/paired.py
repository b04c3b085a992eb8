"""One side against another that was asked the same: differences of each request, and of whole runs.

Owns what makes a pair and what is compared. Must never run anything, nor let a failed request into a time.

A pair is the same turn of the same session in the same repetition, answered whole by both. What makes none is counted
by why. With a workload whose next turn waits for an answer, the sides can be asked different numbers of turns; figures
of whole runs have them all, pairs only those that both were asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from loadgen.compare.columns import Column, Weights
from loadgen.compare.estimates import Sessions, Statistic, estimate, estimate_ratio
from loadgen.compare.schema import Against, Better, LeftOut, PairedMetric, RunMetric
from loadgen.compare.whole_runs import RUN_METRICS, WholeMetric
from loadgen.records import Record
from loadgen.reports.figures import reports_cached
from loadgen.reports.schema import Slo
from loadgen.reports.statistics import mean, ratio

Run = Sequence[Record]
Pair = tuple[Record, Record]  # the baseline's, the side's


def _always(run: Run) -> bool:
    return True


class RequestMetric(NamedTuple):
    """Of one answered request; None leaves the pair out of this metric only. `known`: whether a run has it at all."""

    name: str
    better: Better
    of: Callable[[Record], float | None]
    known: Callable[[Run], bool] = _always


REQUEST_METRICS = (
    RequestMetric("ttft_s", "lower", lambda record: record.ttft),
    RequestMetric("ttft_sent_s", "lower", lambda record: record.ttft_from_sending),
    RequestMetric("tpot_s", "lower", lambda record: record.tpot),
    RequestMetric("e2e_s", "lower", lambda record: record.end - record.due),
    RequestMetric(
        "cached_share", "higher", lambda record: ratio(record.cached_tokens, record.prompt_tokens), reports_cached
    ),
)


def against(side: str, baseline: str, ours: Sequence[Run], theirs: Sequence[Run], slo: Slo, seed: int) -> Against:
    """The runs of `side` against those of `baseline`, parallel: a run a repetition. `seed` is the bootstrap's."""
    records = [record for run in (*ours, *theirs) for record in run]
    sessions = Sessions((record.session for record in records), len(records), seed)
    paired: list[list[Pair]] = []
    left_out = [0] * len(LeftOut.__struct_fields__)
    for one, other in zip(theirs, ours, strict=True):
        pairs, without = pairs_of(one, other)
        paired.append(pairs)
        left_out = [count + more for count, more in zip(left_out, without, strict=True)]
    return Against(
        side=side,
        baseline=baseline,
        repetitions=len(paired),
        pairs=sum(map(len, paired)),
        left_out=LeftOut(*left_out),
        requests=tuple(_of_requests(metric, paired, sessions) for metric in REQUEST_METRICS),
        runs=tuple(_of_runs(metric, theirs, ours, slo, sessions) for metric in RUN_METRICS),
    )


def pairs_of(baseline: Run, side: Run) -> tuple[list[Pair], tuple[int, ...]]:
    """Pairs in order of session and turn; and how many requests make none, in the order of LeftOut's fields."""
    ours = {(record.session, record.turn): record for record in side}
    theirs = {(record.session, record.turn): record for record in baseline}
    common = sorted(ours.keys() & theirs.keys())
    pairs = [(theirs[key], ours[key]) for key in common]
    failed = [(bool(one.error), bool(other.error)) for one, other in pairs]
    return [pair for pair in pairs if not (pair[0].error or pair[1].error)], (
        failed.count((True, False)),
        failed.count((False, True)),
        failed.count((True, True)),
        len(theirs) - len(common),
        len(ours) - len(common),
    )


class _Paired(NamedTuple):
    """One metric of one repetition: the baseline's values, the side's, and their differences."""

    baseline: Column
    side: Column
    differences: Column

    def median_ratio(self, weights: Weights) -> float | None:
        before, after = self.baseline.percentile(50, weights), self.side.percentile(50, weights)
        return None if before is None or after is None else ratio(after, before)


def _of_requests(metric: RequestMetric, repetitions: Sequence[Sequence[Pair]], sessions: Sessions) -> PairedMetric:
    columns: list[_Paired] = []
    every: list[float] = []
    for pairs in repetitions:
        found: list[tuple[int, float, float]] = []
        known = all(metric.known([pair[place] for pair in pairs]) for place in (0, 1))
        for baseline, side in pairs if known else ():
            before, after = metric.of(baseline), metric.of(side)
            if before is not None and after is not None:
                found.append((sessions.place[baseline.session], before, after))
        differences = [(place, after - before) for place, before, after in found]
        every += [difference for _, difference in differences]
        befores, afters = [(place, before) for place, before, _ in found], [(place, after) for place, _, after in found]
        columns.append(_Paired(Column(befores), Column(afters), Column(differences)))
    measured = len(frozenset[int]().union(*(each.differences.places for each in columns)))
    medians = [partial(each.differences.percentile, 50) for each in columns]
    return PairedMetric(
        metric=metric.name,
        better=metric.better,
        pairs=len(every),
        mean_difference=estimate([each.differences.mean for each in columns], sessions, measured),
        median_difference=estimate(medians, sessions, measured),
        median_ratio=estimate_ratio([each.median_ratio for each in columns], sessions, measured),
        better_share=_better_share(every, metric.better),
    )


def _better_share(differences: Sequence[float], better: Better) -> float | None:
    if not differences:
        return None
    more = sum(difference > 0 for difference in differences)
    less = sum(difference < 0 for difference in differences)
    wins = less if better == "lower" else more
    return (wins + (len(differences) - more - less) / 2) / len(differences)


def _of_runs(
    metric: WholeMetric, baseline: Sequence[Run], side: Sequence[Run], slo: Slo, sessions: Sessions
) -> RunMetric:
    befores = [metric.of(run, slo, sessions.place) for run in baseline]
    afters = [metric.of(run, slo, sessions.place) for run in side]
    measured = frozenset[int]().union(*(figure.places for figure in (*befores, *afters)))
    differences = [
        _difference(before.statistic, after.statistic) for before, after in zip(befores, afters, strict=True)
    ]
    return RunMetric(
        metric=metric.name,
        better=metric.better,
        baseline=_over_runs([figure.statistic for figure in befores], sessions),
        side=_over_runs([figure.statistic for figure in afters], sessions),
        difference=estimate(differences, sessions, len(measured)),
    )


def _difference(before: Statistic, after: Statistic) -> Statistic:
    def of(weights: Weights) -> float | None:
        one, other = before(weights), after(weights)
        return None if one is None or other is None else other - one

    return of


def _over_runs(statistics: Sequence[Statistic], sessions: Sessions) -> float | None:
    """The mean over repetitions of a figure of whole runs."""
    return mean([value for value in (statistic(sessions.once) for statistic in statistics) if value is not None])
