"""The runs by setting, their medians, one table and one document.

Owns what is compared and in which words. Must never hold a figure that no run gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import msgspec
from rich.table import Table

from loadgen.demo.document import RunFigures, run_figures
from loadgen.demo.measuring import Measured
from loadgen.fleet import FleetParameters
from loadgen.machine import machine
from loadgen.routers.settings import REFERENCE, SETTINGS, TITLES
from loadgen.routers.workloads import Workload


class WorkloadRuns(NamedTuple):
    """A workload and every run of it so far, by setting, in the order of the rounds."""

    workload: Workload
    runs: dict[str, list[Measured]]


class _Document(msgspec.Struct):
    """What was asked (`name` in short, `workload` in words, `facts`), of which fleet, and every run by its setting."""

    name: str
    workload: str
    facts: dict[str, Any]
    fleet: FleetParameters
    runs: dict[str, list[RunFigures]]


class _Row(msgspec.Struct, frozen=True):
    label: str
    figure: Callable[[RunFigures], float | None]
    form: str


HIT_RATE = _Row("hit rate", lambda run: run.hit_rate, "{:.1%}")
ROWS = (
    HIT_RATE,
    _Row("TTFT p50, ms", lambda run: run.ttft_p50_ms, "{:,.0f}"),
    _Row("TTFT p95, ms", lambda run: run.ttft_p95_ms, "{:,.0f}"),
    _Row("computed tokens, busiest / mean", lambda run: run.balance, "{:.2f}"),
    _Row("requests", lambda run: float(run.requests), "{:,.0f}"),
    _Row("errors", lambda run: float(run.errors), "{:,.0f}"),
    _Row("client's lag p99, ms", lambda run: run.lag_p99_ms, "{:,.0f}"),
    _Row("CPU cores busy here", lambda run: run.cores_busy, "{:.2f}"),
)


def middle(runs: Sequence[Measured], figure: Callable[[RunFigures], float | None]) -> float | None:
    """The median over runs; None when a run has no such figure."""
    values = [figure(run_figures(run)) for run in runs]
    known = [value for value in values if value is not None]
    return median(known) if known and len(known) == len(values) else None


def hit_rate_lost(runs: Mapping[str, Sequence[Measured]], setting: str) -> float | None:
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
        grid.add_row(f"[bold]{result.workload.name}[/]")
        for row in ROWS:
            grid.add_row(row.label, *(_cell(result.runs.get(name, []), row) for name in settings))
            if row is HIT_RATE:
                grid.add_row("  points below one", *(_points(result.runs, name) for name in settings))
    return grid


def _cell(runs: Sequence[Measured], row: _Row) -> str:
    value = middle(runs, row.figure) if runs else None
    if value is None:
        return "–"
    text = row.form.format(value)
    if row is HIT_RATE and len(runs) > 1:
        rates = [run.report.figures.hit_rate or 0.0 for run in runs]
        text += f" ({min(rates):.1%}–{max(rates):.1%})"
    return text


def _points(runs: Mapping[str, Sequence[Measured]], name: str) -> str:
    lost = hit_rate_lost(runs, name)
    return "–" if lost is None or name == REFERENCE else f"{lost:+.1f}"


def document(results: Iterable[WorkloadRuns]) -> bytes:
    """As JSON, with what it was measured on."""
    workloads = [
        _Document(
            result.workload.name,
            result.workload.words,
            result.workload.facts,
            result.workload.fleet,
            {name: [run_figures(run) for run in runs] for name, runs in result.runs.items()},
        )
        for result in results
    ]
    return msgspec.json.format(msgspec.json.encode({"machine": machine(), "workloads": workloads})) + b"\n"
