"""Reports as one table in a terminal.

Owns how a table of figures looks there. Must never let what came from outside act as markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from loadgen.reports import rows
from loadgen.reports.schema import RunReport


def table(
    reports: Mapping[str, RunReport], groups: Sequence[rows.Group] | None = None, title: str | None = None
) -> Table:
    """One column a report; the best of each row is bold and starred (shared by equals; none where all are equal).

    `groups` are the lines, by default all that there is a figure for; `title` is by default the workload's name.
    """
    marks = " (* best)" if len(reports) > 1 else ""
    workloads = dict.fromkeys(report.plan.workload for report in reports.values())
    grid = Table(title=Text(f"{title or ', '.join(workloads)}{marks}"))
    grid.add_column("")
    for name, report in reports.items():
        heading = name if report.validity.valid else f"{name} (invalid)"
        grid.add_column(Text(heading), justify="right")
    for group in rows.groups(reports) if groups is None else groups:
        for row in group.rows:
            grid.add_row(Text(row.label), *_cells(row, reports))
        grid.add_section()
    return grid


def _cells(row: rows.Row, reports: Mapping[str, RunReport]) -> list[Text]:
    figures = row.figures(reports)
    marks = rows.best(row.form, figures, row.better)
    shown = zip(rows.texts(row.form, figures), marks, strict=True)
    return [Text(f"{text} *", style="bold green") if mark else Text(text) for text, mark in shown]


def warnings(reports: Mapping[str, RunReport]) -> list[str]:
    """What a reader must know before the figures, a line each: why a run is invalid, what else is odd
    about it, and what failed how often."""
    lines = []
    for name, report in reports.items():
        lines += [f"{name} is invalid: {reason}" for reason in report.validity.reasons]
        lines += [f"{name}: {remark}" for remark in report.remarks]
        lines += [f"{name}: {count} x {message}" for message, count in report.error_messages.items()]
        lines += [
            f"{name}: {event.what} at {event.at_s:.1f} s: {event.error}" for event in report.events if event.error
        ]
    return lines
