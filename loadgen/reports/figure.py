"""A plot with what belongs beside it: title, note, legend and its data as a table.

Owns this frame. Must never hold a drawing without its data.
"""

from __future__ import annotations

from loadgen.reports import plots, tables
from loadgen.reports.markup import Markup, element
from loadgen.reports.plots import Chart
from loadgen.reports.rows import NOTHING


def figure(title: str, note: str, legend: Markup, drawing: Markup, table: Markup) -> Markup:
    return element("figure", element("figcaption", title, element("span", note)), legend, drawing, table)


def chart_figure(chart: Chart, note: str, table: Markup) -> Markup:
    """Where there is no value to draw it says so."""
    if any(y is not None for line in chart.lines for _, y in line.points):
        return figure(chart.title, note, plots.legend(chart.lines), plots.chart(chart), table)
    nothing = element("p", "Nothing was measured.", class_="soft")
    return figure(chart.title, note, Markup(), nothing, Markup())


def points_table(chart: Chart, head: str) -> Markup:
    """A row for each x of any line."""
    columns = [dict(line.points) for line in chart.lines]
    body = [
        tables.row(
            chart.x.write(x), [NOTHING if (y := found.get(x)) is None else chart.y.write(y) for found in columns]
        )
        for x in sorted({x for found in columns for x in found})
    ]
    return tables.folded([head, *(line.label for line in chart.lines)], body)
