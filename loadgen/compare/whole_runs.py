"""The figures of whole runs that are compared, as functions of how often each session counts.

Owns how each is put together from a run's records. Must never define one anew: with every session counted once, each is
the figure of the same name in the run's own report (reports/figures.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from loadgen.compare.columns import Column, Weights
from loadgen.compare.estimates import Statistic
from loadgen.compare.schema import Better
from loadgen.records import Record
from loadgen.reports.figures import meets, reports_cached
from loadgen.reports.schema import Slo
from loadgen.reports.statistics import ratio

Run = Sequence[Record]
Places = Mapping[int, int]  # of sessions


class Figure(NamedTuple):
    """One figure of one run; `places` are of the sessions that have a part in it."""

    statistic: Statistic
    places: frozenset[int]


class WholeMetric(NamedTuple):
    name: str
    better: Better
    of: Callable[[Run, Slo, Places], Figure]


def _column(run: Run, places: Places, of: Callable[[Record], float | None]) -> Column:
    """Of answered requests."""
    values = ((places[record.session], of(record)) for record in run if not record.error)
    return Column((place, value) for place, value in values if value is not None)


def _mean(of: Callable[[Record], float | None], run: Run, slo: Slo, places: Places) -> Figure:
    column = _column(run, places, of)
    return Figure(column.mean, column.places)


def _percentile(percent: float, of: Callable[[Record], float | None], run: Run, slo: Slo, places: Places) -> Figure:
    column = _column(run, places, of)
    return Figure(partial(column.percentile, percent), column.places)


def _hit_rate(run: Run, slo: Slo, places: Places) -> Figure:
    if not reports_cached(run):
        return Figure(lambda weights: None, frozenset())
    cached = _column(run, places, lambda record: record.cached_tokens)
    prompt = _column(run, places, lambda record: record.prompt_tokens)
    return Figure(lambda weights: ratio(cached.sum(weights), prompt.sum(weights)), prompt.places)


def _good_ones(run: Run, slo: Slo, places: Places) -> Column:
    """Failed requests are none."""
    return Column((places[record.session], float(meets(record, slo))) for record in run)


def _good(run: Run, slo: Slo, places: Places) -> Figure:
    column = _good_ones(run, slo, places)
    return Figure(column.mean, column.places)


def _goodput(run: Run, slo: Slo, places: Places) -> Figure:
    column = _good_ones(run, slo, places)
    duration = max((record.end for record in run), default=0.0)

    def of(weights: Weights) -> float | None:
        return ratio(column.sum(weights), duration)

    return Figure(of, column.places)


def _ttft(record: Record) -> float | None:
    return record.ttft


def _tpot(record: Record) -> float | None:
    return record.tpot


def _e2e(record: Record) -> float:
    return record.end - record.due


RUN_METRICS = (
    WholeMetric("hit_rate", "higher", _hit_rate),
    WholeMetric("ttft_mean_s", "lower", partial(_mean, _ttft)),
    WholeMetric("ttft_p50_s", "lower", partial(_percentile, 50, _ttft)),
    WholeMetric("ttft_p95_s", "lower", partial(_percentile, 95, _ttft)),
    WholeMetric("ttft_p99_s", "lower", partial(_percentile, 99, _ttft)),
    WholeMetric("tpot_mean_s", "lower", partial(_mean, _tpot)),
    WholeMetric("e2e_p50_s", "lower", partial(_percentile, 50, _e2e)),
    WholeMetric("good", "higher", _good),
    WholeMetric("goodput_rps", "higher", _goodput),
)
