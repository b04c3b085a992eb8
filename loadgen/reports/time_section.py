"""The page's part on what happened when: figures by window, and the events between them.

Owns which figures are drawn over time. Must never smooth one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from loadgen.reports import axes, series
from loadgen.reports.canvas import Mark
from loadgen.reports.figure import chart_figure, points_table
from loadgen.reports.markup import Markup, element
from loadgen.reports.plots import Chart, Line
from loadgen.reports.schema import RunReport

_BY_DUE = "Of the requests that came due in a window."


def section(reports: Mapping[str, RunReport], marks: Sequence[Mark]) -> Markup:
    widths = dict.fromkeys(f"{report.timeline.window_s:g}" for report in reports.values())
    figures = [
        chart_figure(chart, note, points_table(chart, "middle of the window"))
        for chart, note in _charts(reports, clock(reports), marks)
    ]
    return element(
        "section",
        element("h2", "Over time"),
        element("p", f"By windows of {' or '.join(widths)} s.", class_="soft"),
        element("ol", *(element("li", mark.hint) for mark in marks), class_="events") if marks else Markup(),
        element("div", *figures, class_="plots"),
    )


def clock(reports: Mapping[str, RunReport]) -> axes.Axis:
    """One axis of time for all runs."""
    ends = [report.timeline.window_s * len(report.timeline.windows) for report in reports.values()]
    return axes.clock_axis(max(ends, default=0.0))


def _charts(reports: Mapping[str, RunReport], clock: axes.Axis, marks: Sequence[Mark]) -> Iterable[tuple[Chart, str]]:
    for title, lines in _ttft_lines(reports):
        yield Chart(title, clock, axes.time_axis("TTFT", _heights(lines)), lines, marks), _BY_DUE
    flying = _lines(reports, "in_flight")
    axis = axes.count_axis("requests", _heights(flying))
    yield Chart("Requests in flight", clock, axis, flying, marks), "Mean number sent and not yet ended."
    hits = _lines(reports, "hit_rate")
    yield Chart("Hit rate", clock, axes.share_axis("cached prompt tokens"), hits, marks), _BY_DUE
    if any(report.figures.errors for report in reports.values()):
        failed = _lines(reports, "errors")
        axis = axes.count_axis("failed requests", _heights(failed))
        yield Chart("Errors", clock, axis, failed, marks), "By the window in which they failed."


def _ttft_lines(reports: Mapping[str, RunReport]) -> Iterable[tuple[str, list[Line]]]:
    """Both percentiles in one chart for a single run; a chart of all runs for each of them otherwise."""
    if len(reports) > 1:
        yield "Time to first token, p50", _lines(reports, "ttft_p50_s")
        yield "Time to first token, p99", _lines(reports, "ttft_p99_s")
        return
    for report in reports.values():
        p50 = series.window_line("p50", report, "ttft_p50_s", 0)
        yield "Time to first token", [p50, series.window_line("p99", report, "ttft_p99_s", 0, dashed=True)]


def _lines(reports: Mapping[str, RunReport], field: str) -> list[Line]:
    return [series.window_line(name, report, field, colour) for colour, (name, report) in enumerate(reports.items())]


def _heights(lines: Iterable[Line]) -> list[float]:
    return [y for line in lines for _, y in line.points if y is not None]
