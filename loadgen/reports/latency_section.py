"""The page's part on latencies: how they are distributed.

Owns which distributions are shown. Must never let a failed request into one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loadgen.records import Record
from loadgen.reports import axes, series, tables
from loadgen.reports.canvas import Mark
from loadgen.reports.figure import chart_figure
from loadgen.reports.markup import Markup, element
from loadgen.reports.plots import Chart
from loadgen.reports.rows import NOTHING
from loadgen.reports.schema import RunReport

_INTRODUCTION = "The share of requests that took at most so long, of those that were answered whole."


def section(reports: Mapping[str, RunReport], records: Mapping[str, Sequence[Record]]) -> Markup:
    found = series.distributions(records)
    slos = {report.slo for report in reports.values()}
    slo = next(iter(slos)) if len(slos) == 1 else None
    charts = [
        _cdf("Time to first token", "From when a request was due.", "TTFT", found["ttft"], slo.ttft_s if slo else None),
        _cdf(
            "Time per output token",
            "Mean of a request, after its first.",
            "TPOT",
            found["tpot"],
            slo.tpot_s if slo else None,
        ),
        _cdf("End to end", "From when a request was due to its last token.", "time", found["e2e"], None),
    ]
    return element(
        "section", element("h2", "Latency"), element("p", _INTRODUCTION), element("div", *charts, class_="plots three")
    )


def _cdf(title: str, note: str, label: str, found: series.Distributions, limit_s: float | None) -> Markup:
    ends = [end for values in found.values() if values for end in (values[0], values[-1])]
    axis = axes.log_time_axis(f"{label} (log scale)", ends)
    inside = limit_s is not None and axis.low <= limit_s <= axis.high
    marks = [Mark(limit_s, "SLO", f"SLO: {axes.seconds(limit_s)}")] if limit_s is not None and inside else []
    chart = Chart(title, axis, axes.share_axis("requests up to it"), series.cdf_lines(found), marks)
    body = [tables.row(f"{percent:g} %", map(_seconds, values)) for percent, values in series.cdf_table(found)]
    return chart_figure(chart, note, tables.folded(["of requests", *found], body))


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else axes.seconds(value)
