"""The page's part on the replicas: who computed how much, when and in all.

Owns which facts of a replica are shown. Must never compare runs on scales of their own: all share one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loadgen.reports import heat, tables
from loadgen.reports.axes import Axis
from loadgen.reports.canvas import Mark
from loadgen.reports.figure import figure
from loadgen.reports.markup import Markup, element, join
from loadgen.reports.schema import RunReport

_INTRODUCTION = "Prompt tokens that each computed (those not cached), when their request's first token came."
_UNNAMED = "No answer named the replica that gave it."
_COUNTED = "By the replicas' own counters."


def section(reports: Mapping[str, RunReport], clock: Axis, marks: Sequence[Mark]) -> Markup:
    known = {name: report for name, report in reports.items() if report.replicas}
    unnamed = {name: report for name, report in reports.items() if report.computed and not report.replicas}
    if not known and not unnamed:
        nobody = element("p", _UNNAMED, class_="soft")
        return element("section", element("h2", "Replicas"), nobody)
    heats = {name: heat.heat(report.timeline) for name, report in known.items()}
    most = max((value for found in heats.values() for cells in found.cells for value in cells), default=0)
    maps = [_map(name, found, most, clock, marks) for name, found in heats.items() if most > 0]
    return element(
        "section",
        element("h2", "Replicas"),
        element("p", _INTRODUCTION, class_="soft") if known else Markup(),
        element("div", *maps, class_="plots"),
        *(join(element("h3", name), tables.replicas(report)) for name, report in known.items()),
        *(
            join(element("h3", name), element("p", f"{_UNNAMED} {_COUNTED}", class_="soft"), tables.counted(report))
            for name, report in unnamed.items()
        ),
    )


def _map(name: str, found: heat.Heat, most: int, clock: Axis, marks: Sequence[Mark]) -> Markup:
    title = f"Computed prompt tokens: {name}"
    body = [
        tables.row(f"{column * found.width_s:g}", [f"{cells[column]:,}" for cells in found.cells])
        for column in range(max(map(len, found.cells), default=0))
    ]
    return figure(
        title,
        f"Replica by time, in windows of {found.width_s:g} s.",
        heat.shades(most),
        heat.heat_map(title, found, most, clock, marks),
        tables.folded(["from, s", *found.names], body),
    )
