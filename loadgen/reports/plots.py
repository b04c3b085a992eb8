"""Curves over an axis, as inline SVG.

Owns the look of a chart and of its legend. Must never draw more than a bounded number of points, whatever it is given,
nor need a script: hints are SVG titles.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from loadgen.reports import canvas
from loadgen.reports.axes import Axis
from loadgen.reports.canvas import COLOURS, RIGHT, TOP, Mark
from loadgen.reports.markup import Markup, element, join, number

MAX_POINTS = 400
_HINTS = 48
_HEIGHT = 262.0
_LEFT = 50.0
_BOTTOM = _HEIGHT - canvas.BELOW


class Line(NamedTuple):
    """A curve by rising x; a y of None is a gap. `colour` is an index into the page's palette."""

    label: str
    points: Sequence[tuple[float, float | None]]
    colour: int
    dashed: bool = False


class Chart(NamedTuple):
    title: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()


def thin(points: Sequence[tuple[float, float | None]]) -> Sequence[tuple[float, float | None]]:
    """At most MAX_POINTS of them, evenly spread, the first and the last among them."""
    if len(points) <= MAX_POINTS:
        return points
    return [points[index * (len(points) - 1) // (MAX_POINTS - 1)] for index in range(MAX_POINTS)]


def chart(what: Chart) -> Markup:
    return canvas.svg(
        what.title,
        _HEIGHT,
        canvas.y_name(what.y.label),
        *_y_ticks(what.y),
        canvas.x_axis(what.x, _LEFT, _BOTTOM),
        canvas.marks_over(what.marks, what.x, _LEFT, _BOTTOM),
        *(_curve(line, what) for line in what.lines),
        element("g", *_hints(what), class_="hints"),
    )


def legend(lines: Iterable[Line]) -> Markup:
    return element("ul", *(element("li", _sample(line), line.label) for line in lines), class_="legend")


def swatch(colour: int) -> Markup:
    return _sample(Line("", (), colour))


def _sample(line: Line) -> Markup:
    stroke = element("path", d="M1 5H21", class_=_look(line))
    return element("svg", stroke, viewBox="0 0 22 10", class_="sample", aria_hidden="true")


def _look(line: Line) -> str:
    return f"curve {colour(line.colour)}" + (" dashed" if line.dashed else "")


def colour(index: int) -> str:
    """The palette's class; it begins anew after its last."""
    return f"c{index % COLOURS}"


def _y_ticks(axis: Axis) -> Iterable[Markup]:
    for value, label in axis.ticks:
        y = axis.place(value, _BOTTOM, TOP)
        yield element("line", x1=_LEFT, x2=RIGHT, y1=y, y2=y, class_="grid")
        yield canvas.words(label, _LEFT - 6, y + 4, "end")


def _curve(line: Line, what: Chart) -> Markup:
    """A path for each stretch without a gap; a point between gaps becomes a dot."""
    strokes, dots = [], []
    for gap, stretch in groupby(thin(line.points), key=lambda point: point[1] is None):
        if gap:
            continue
        places = [(what.x.place(x, _LEFT, RIGHT), what.y.place(y or 0.0, _BOTTOM, TOP)) for x, y in stretch]
        if len(places) == 1:
            dots.append(element("circle", cx=places[0][0], cy=places[0][1], r=2.5, class_=f"dot {colour(line.colour)}"))
        else:
            strokes.append("M" + "L".join(f"{number(x)} {number(y)}" for x, y in places))
    path = element("path", d="".join(strokes), class_=_look(line)) if strokes else Markup()
    return join(path, *dots)


def _hints(what: Chart) -> Iterable[Markup]:
    """Bands over the width, each with what the curves say at its middle."""
    width = (RIGHT - _LEFT) / _HINTS
    for index in range(_HINTS):
        x = what.x.value((index + 0.5) / _HINTS)
        values = [f"{line.label}: {_at(line, x, what.y)}" for line in what.lines]
        hint = element("title", "\n".join([what.x.write(x), *values]))
        yield element("rect", hint, x=_LEFT + index * width, y=TOP, width=width, height=_BOTTOM - TOP)


def _at(line: Line, x: float, axis: Axis) -> str:
    index = bisect_right(line.points, x, key=lambda point: point[0]) - 1
    value = line.points[index][1] if index >= 0 else None
    return "–" if value is None else axis.write(value)
