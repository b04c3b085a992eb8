"""The figures of `loadgen.many_routers`: runs by setting, their medians, one table.

Owns what is compared and in which words. Must never hold a figure that no run gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import msgspec
from rich.table import Table

from loadgen.fleet import FleetParameters, Truth
from loadgen.report import PolicyReport

REFERENCE = "one"
SETTINGS: dict[str, Truth] = {REFERENCE: "embedded", "shared": "redis", "private": "private"}
TITLES = {REFERENCE: "one router", "shared": "{} routers, one tree", "private": "{} routers, private"}


class WorkloadRuns(msgspec.Struct):
    """What was asked (`name` in short, `workload` in words, `facts`), of which fleet, and every run by its setting."""

    name: str
    workload: str
    facts: dict[str, Any]
    fleet: FleetParameters
    runs: dict[str, list[PolicyReport]]


class _Row(msgspec.Struct, frozen=True):
    label: str
    figure: Callable[[PolicyReport], float | None]
    form: str


HIT_RATE = _Row("hit rate", lambda report: report.hit_rate, "{:.1%}")
ROWS = (
    HIT_RATE,
    _Row("TTFT p50, ms", lambda report: report.ttft_p50_ms, "{:,.0f}"),
    _Row("TTFT p95, ms", lambda report: report.ttft_p95_ms, "{:,.0f}"),
    _Row("computed tokens, busiest / mean", lambda report: report.balance, "{:.2f}"),
    _Row("requests", lambda report: float(report.requests), "{:,.0f}"),
    _Row("errors", lambda report: float(report.errors), "{:,.0f}"),
    _Row("client's lag p99, ms", lambda report: report.lag_p99_ms, "{:,.0f}"),
    _Row("CPU cores busy here", lambda report: report.cores_busy, "{:.2f}"),
)


def middle(reports: Sequence[PolicyReport], figure: Callable[[PolicyReport], float | None]) -> float | None:
    """The median over runs; None when a run has no such figure."""
    values = [figure(report) for report in reports]
    known = [value for value in values if value is not None]
    return median(known) if known and len(known) == len(values) else None


def hit_rate_lost(runs: Mapping[str, Sequence[PolicyReport]], setting: str) -> float | None:
    """Percentage points of hit rate that `setting` is below one router, by their medians; negative if above."""
    if not (runs.get(setting) and runs.get(REFERENCE)):
        return None
    ours, theirs = (middle(runs[name], HIT_RATE.figure) for name in (setting, REFERENCE))
    return None if ours is None or theirs is None else (theirs - ours) * 100


def table(results: Sequence[WorkloadRuns], routers: int) -> Table:
    """A column for each setting, a block of rows for each workload. Of several runs: medians; the hit rates' range."""
    settings = [name for name in SETTINGS if any(name in result.runs for result in results)]
    grid = Table(title="The same requests through one router and through several, taken in turn")
    grid.add_column("")
    for name in settings:
        grid.add_column(TITLES[name].format(routers), justify="right")
    for result in results:
        grid.add_section()
        grid.add_row(f"[bold]{result.name}[/]")
        for row in ROWS:
            grid.add_row(row.label, *(_cell(result.runs.get(name, []), row) for name in settings))
            if row is HIT_RATE:
                grid.add_row("  points below one", *(_points(result.runs, name) for name in settings))
    return grid


def _cell(reports: Sequence[PolicyReport], row: _Row) -> str:
    value = middle(reports, row.figure) if reports else None
    if value is None:
        return "–"
    text = row.form.format(value)
    if row is HIT_RATE and len(reports) > 1:
        rates = [report.hit_rate or 0.0 for report in reports]
        text += f" ({min(rates):.1%}–{max(rates):.1%})"
    return text


def _points(runs: Mapping[str, Sequence[PolicyReport]], name: str) -> str:
    lost = hit_rate_lost(runs, name)
    return "–" if lost is None or name == REFERENCE else f"{lost:+.1f}"
