"""Values with their intervals around 1, as inline SVG.

Owns the look of this drawing. Must never leave an interval out whose value it draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from loadgen.reports import canvas
from loadgen.reports.axes import Axis
from loadgen.reports.canvas import RIGHT, TOP
from loadgen.reports.markup import Markup, element
from loadgen.reports.plots import colour

_LEFT = 140.0
_ROW = 16.0
_GAP = 10.0


class Interval(NamedTuple):
    """What a value is and what it may be, both as ratios (1: no difference)."""

    of: str
    value: float
    low: float | None
    high: float | None
    colour: int


def intervals(title: str, groups: Sequence[tuple[str, Sequence[Interval]]], axis: Axis) -> Markup:
    """A dot for each value, a bar for its interval, and a line where nothing differs."""
    drawn, y = [], TOP
    for name, rows in groups:
        drawn.append(canvas.words(name, _LEFT - 8, y + _ROW * len(rows) / 2 + 4, "end"))
        drawn += [_interval(name, row, axis, y + _ROW * (index + 0.5)) for index, row in enumerate(rows)]
        y += _ROW * len(rows) + _GAP
    one = axis.place(1.0, _LEFT, RIGHT)
    equal = element("line", x1=one, x2=one, y1=TOP - 6, y2=y, class_="tick")
    return canvas.svg(title, y + canvas.BELOW, equal, canvas.x_axis(axis, _LEFT, y), *drawn)


def _interval(name: str, row: Interval, axis: Axis, y: float) -> Markup:
    look = colour(row.colour)
    said = f"{name}, {row.of}: {axis.write(row.value)}"
    parts = [element("circle", cx=axis.place(row.value, _LEFT, RIGHT), cy=y, r=2.5, class_=f"dot {look}")]
    if row.low is not None and row.high is not None:
        said += f", {axis.write(row.low)} to {axis.write(row.high)}"
        start, end = axis.place(row.low, _LEFT, RIGHT), axis.place(row.high, _LEFT, RIGHT)
        parts.append(element("line", x1=start, x2=end, y1=y, y2=y, class_=f"curve {look}"))
    return element("g", element("title", said), *parts)
