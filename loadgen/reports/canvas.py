"""The ground that every plot is drawn on: its size, words and marks.

Owns what all drawings share. Must never know what a drawing shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from loadgen.reports.axes import Axis
from loadgen.reports.markup import Markup, element, join, number

WIDTH = 420.0
RIGHT = 408.0
TOP = 28.0
BELOW = 42.0
"""What an x axis needs under the drawing."""

COLOURS = 8
_MARKS = 40
_LABEL_WIDTH = 12.0


class Mark(NamedTuple):
    """A vertical line at `x`: `label` stands at its head, `hint` is for the pointer."""

    x: float
    label: str
    hint: str


def svg(title: str, height: float, *content: str) -> Markup:
    """`title` is what a screen reader says; the data stand in a table beside the drawing."""
    return element("svg", *content, viewBox=f"0 0 {number(WIDTH)} {number(height)}", role="img", aria_label=title)


def words(text: str, x: float, y: float, anchor: str = "middle", class_: str | None = None) -> Markup:
    return element("text", text, x=x, y=y, text_anchor=anchor, class_=class_)


def y_name(label: str) -> Markup:
    """Upright above the axis, where a phone's reader need not turn the head."""
    return words(label, 2, 10, "start", "name")


def x_axis(axis: Axis, left: float, bottom: float) -> Markup:
    base = element("line", x1=left, x2=RIGHT, y1=bottom, y2=bottom, class_="tick")
    ticks = []
    for value, label in axis.ticks:
        x = axis.place(value, left, RIGHT)
        ticks.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="tick"))
        ticks.append(words(label, x, bottom + 17, "end" if x > RIGHT - 8 and len(label) > 3 else "middle"))
    return join(base, *ticks, words(axis.label, (left + RIGHT) / 2, bottom + 36, class_="name"))


def marks_over(marks: Sequence[Mark], axis: Axis, left: float, bottom: float) -> Markup:
    """A label that would lie on the one before it is left out; its hint stays."""
    drawn, last = [], -_LABEL_WIDTH
    for mark in marks[:_MARKS]:
        x = axis.place(mark.x, left, RIGHT)
        free = x - last >= _LABEL_WIDTH
        last = x if free else last
        drawn.append(_mark(mark, x, bottom, mark.label if free else ""))
    return join(*drawn)


def _mark(mark: Mark, x: float, bottom: float, label: str) -> Markup:
    line = element("line", x1=x, x2=x, y1=TOP, y2=bottom)
    anchor = "end" if x > RIGHT - 12 and len(label) > 2 else "middle"
    head = words(label, x, TOP - 4, anchor) if label else Markup()
    return element("g", element("title", mark.hint), line, head, class_="mark")
