"""The heat map of replica by time, as inline SVG.

Owns its look and how far rows and columns are merged. Must never draw more than a bounded number of cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loadgen.reports import canvas
from loadgen.reports.axes import Axis
from loadgen.reports.canvas import RIGHT, TOP, Mark
from loadgen.reports.markup import Markup, element
from loadgen.reports.schema import Timeline

MAX_ROWS = 40
MAX_COLUMNS = 80

_LEFT = 92.0
_LONGEST_NAME = 14
_FAINTEST = 0.08


class Heat(NamedTuple):
    """`cells[row][column]`; column c covers `width_s` seconds from c x `width_s`."""

    names: Sequence[str]
    width_s: float
    cells: Sequence[Sequence[int]]


def heat(timeline: Timeline) -> Heat:
    """Rows in the replicas' own order. Of too many the least busy share a row, their mean; columns are added up."""
    merged = -(-len(timeline.windows) // MAX_COLUMNS) or 1
    rows = {name: _merge(tokens, merged) for name, tokens in timeline.computed_tokens.items()}
    if len(rows) > MAX_ROWS:
        rows = _fold(rows)
    return Heat(list(rows), timeline.window_s * merged, list(rows.values()))


def _merge(tokens: Sequence[int], size: int) -> list[int]:
    return [sum(tokens[start : start + size]) for start in range(0, len(tokens), size)]


def _fold(rows: Mapping[str, list[int]]) -> dict[str, list[int]]:
    busiest = set(sorted(rows, key=lambda name: sum(rows[name]), reverse=True)[: MAX_ROWS - 1])
    others = [tokens for name, tokens in rows.items() if name not in busiest]
    kept = {name: tokens for name, tokens in rows.items() if name in busiest}
    means = [round(sum(column) / len(others)) for column in zip(*others, strict=True)]
    return {**kept, f"mean of {len(others)}": means}


def heat_map(title: str, shown: Heat, most: int, clock: Axis, marks: Sequence[Mark]) -> Markup:
    """Darker (on a dark page lighter) is more; `most` is the value of the strongest shade."""
    height = 15.0 if len(shown.names) > 12 else 22.0
    bottom = TOP + height * len(shown.names)
    return canvas.svg(
        title,
        bottom + canvas.BELOW,
        canvas.y_name("replica"),
        element("rect", x=_LEFT, y=TOP, width=RIGHT - _LEFT, height=bottom - TOP, class_="ground"),
        *(_name(name, TOP + height * (row + 0.5)) for row, name in enumerate(shown.names)),
        element("g", *_cells(shown, most, clock, height), class_="heat"),
        canvas.marks_over(marks, clock, _LEFT, bottom),
        canvas.x_axis(clock, _LEFT, bottom),
    )


def _name(name: str, y: float) -> Markup:
    short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
    return canvas.words(short, _LEFT - 6, y + 4, "end")


def _cells(shown: Heat, most: int, clock: Axis, height: float) -> list[Markup]:
    return [
        _cell(shown, row, column, clock, height, _shade(value / most))
        for row, values in enumerate(shown.cells)
        for column, value in enumerate(values)
        if value > 0
    ]


def _cell(shown: Heat, row: int, column: int, clock: Axis, height: float, shade: str) -> Markup:
    start, end = column * shown.width_s, (column + 1) * shown.width_s
    x, beyond = clock.place(start, _LEFT, RIGHT), clock.place(end, _LEFT, RIGHT)
    hint = element("title", f"{shown.names[row]}, {start:g} to {end:g} s: {shown.cells[row][column]:,}")
    y, width = TOP + row * height, max(beyond - x, 0.5)
    return element("rect", hint, x=x, y=y, width=width, height=height, fill_opacity=shade)


def _shade(share: float) -> str:
    return f"{_FAINTEST + (1 - _FAINTEST) * share:.2f}"


def shades(most: int) -> Markup:
    """The heat map's legend."""
    steps = [element("rect", x=20.0 * i, y=0, width=20, height=10, fill_opacity=_shade(i / 5)) for i in range(6)]
    scale = element(
        "svg", element("g", *steps, class_="heat"), viewBox="0 0 120 10", class_="scale", aria_hidden="true"
    )
    return element("p", "0 ", scale, f" {most:,} prompt tokens a window", class_="legend")
