"""A comparison as one table in a terminal.

Owns how it looks there. Must never mark a difference as known whose interval has zero in it, nor let what came from
outside act as markup.
"""

from __future__ import annotations

from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from loadgen.compare.schema import Against, Better, ComparisonReport, Estimate, PairedMetric, RunMetric, Side
from loadgen.reports.rows import NOTHING, interval_text
from loadgen.reports.schema import RunReport


class _Unit(NamedTuple):
    """How a figure is written, and differences of it."""

    label: str
    scale: float
    form: str
    difference: str


_MS = ("{:,.0f}", "{:+,.0f}")
_FINE = ("{:,.2f}", "{:+,.2f}")
_PERCENT = ("{:.1f}", "{:+.1f}")

UNITS = {
    "hit_rate": _Unit("hit rate, %", 100, *_PERCENT),
    "ttft_mean_s": _Unit("TTFT mean, ms", 1e3, *_MS),
    "ttft_p50_s": _Unit("TTFT p50, ms", 1e3, *_MS),
    "ttft_p95_s": _Unit("TTFT p95, ms", 1e3, *_MS),
    "ttft_p99_s": _Unit("TTFT p99, ms", 1e3, *_MS),
    "tpot_mean_s": _Unit("TPOT mean, ms", 1e3, *_FINE),
    "e2e_p50_s": _Unit("end to end p50, ms", 1e3, *_MS),
    "good": _Unit("good under the SLO, %", 100, *_PERCENT),
    "goodput_rps": _Unit("goodput, req/s", 1, *_FINE),
    "balance_tokens": _Unit("balance, computed tokens", 1, *_FINE),
    "balance_requests": _Unit("balance, requests", 1, *_FINE),
    "ttft_s": _Unit("TTFT, ms", 1e3, *_MS),
    "ttft_sent_s": _Unit("TTFT from sending, ms", 1e3, *_MS),
    "tpot_s": _Unit("TPOT, ms", 1e3, *_FINE),
    "e2e_s": _Unit("end to end, ms", 1e3, *_MS),
    "cached_share": _Unit("cached share of the prompt, %", 100, *_PERCENT),
}


def table(comparison: ComparisonReport) -> Table:
    """Whole runs first, then pairs of the same request; a column for each side, and one for each difference."""
    done = comparison.repetitions_done
    grid = Table(
        title=Text(f"{comparison.plan.workload}, {done} repetition{'' if done == 1 else 's'} of each"),
        caption=Text(
            f"Differences from {comparison.baseline}, with {comparison.confidence:.0%} intervals: better or worse "
            "where they leave out zero"
        ),
    )
    grid.add_column("")
    grid.add_column(Text(comparison.baseline), justify="right")
    for against in comparison.against:
        grid.add_column(Text(against.side), justify="right")
        grid.add_column("difference", justify="right")
    for place, metric in enumerate(comparison.against[0].runs):
        grid.add_row(_label(metric.metric), *_whole([against.runs[place] for against in comparison.against]))
    grid.add_row("requests, errors", *_counts(comparison))
    grid.add_section()
    for place, request in enumerate(comparison.against[0].requests):
        metrics = [against.requests[place] for against in comparison.against]
        grid.add_row(Text(f"each pair: {UNITS[request.metric].label}"), *_paired(metrics))
        grid.add_row(Text("    ratio of medians"), *_ratios(metrics))
    grid.add_row("pairs", *_pairs(comparison.against))
    return grid


def in_short(repetition: int, report: RunReport) -> str:
    """A finished run in a line. `repetition` counts from 0."""
    found = report.figures
    words = [f"repetition {repetition + 1}: {found.requests} requests in {found.duration_s:.1f} s"]
    words.append(f"{found.errors} errors")
    if found.hit_rate is not None:
        words.append(f"hit rate {found.hit_rate:.1%}")
    if found.ttft_p50_s is not None:
        words.append(f"TTFT p50 {found.ttft_p50_s * 1e3:,.0f} ms")
    return ", ".join(words)


def _label(metric: str) -> Text:
    return Text(UNITS[metric].label)


def _whole(metrics: list[RunMetric]) -> list[Text]:
    unit = UNITS[metrics[0].metric]
    cells = [_figure(metrics[0].baseline, unit)]
    for metric in metrics:
        cells += [_figure(metric.side, unit), _difference(metric.difference, unit, metric.better)]
    return cells


def _paired(metrics: list[PairedMetric]) -> list[Text]:
    cells = [Text()]
    for metric in metrics:
        share = NOTHING if metric.better_share is None else f"better in {metric.better_share:.0%}"
        cells += [Text(share), _difference(metric.mean_difference, UNITS[metric.metric], metric.better)]
    return cells


def _ratios(metrics: list[PairedMetric]) -> list[Text]:
    cells = [Text()]
    for metric in metrics:
        cells += [Text(), Text(interval_text(metric.median_ratio, 1.0, "{:.2f}x"))]
    return cells


def _counts(comparison: ComparisonReport) -> list[Text]:
    cells = []
    for side in comparison.sides:
        cells += [Text(_count(side)), Text()]
    return [cells[0], *cells[2:]]


def _count(side: Side) -> str:
    figures = [run.report.figures for run in side.repetitions]
    return f"{sum(found.requests for found in figures):,}, {sum(found.errors for found in figures):,}"


def _pairs(against: tuple[Against, ...]) -> list[Text]:
    cells = [Text()]
    for each in against:
        left_out = f"{each.left_out.total:,} make none" if each.left_out.total else ""
        cells += [Text(f"{each.pairs:,}"), Text(left_out)]
    return cells


def _figure(value: float | None, unit: _Unit) -> Text:
    return Text(NOTHING if value is None else unit.form.format(value * unit.scale))


def _difference(estimate: Estimate, unit: _Unit, better: Better) -> Text:
    text = interval_text(estimate, unit.scale, unit.difference)
    if not estimate.certain or estimate.value is None:
        return Text(text)
    good = (estimate.value > 0) == (better == "higher")
    return Text(f"{text} {'better' if good else 'worse'}", style="green" if good else "red")
