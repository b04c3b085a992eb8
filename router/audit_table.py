"""An audit in words, for people: a table, and the sentence that sums it up.

Owns the layout. Must never hold a figure that is not in the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from router.audit import AuditReport, PlaceReport
from router.audit_places import REDIS
from router.audit_repair import Repair


def table(report: AuditReport) -> Table:
    """A row for each replica and place."""
    rows = [
        (replica, label, place, number == 0)
        for replica in report.replicas
        for number, (label, place) in enumerate(replica.places.items())
    ]
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    drawn.add_column("replica", overflow="fold")
    drawn.add_column("holds", justify="right", no_wrap=True)
    drawn.add_column("compared with", overflow="fold")
    for column in ("believes", "false positives", "false negatives"):
        drawn.add_column(column, justify="right")
    if any(place.note for _, _, place, _ in rows):
        drawn.add_column("")
    for replica, label, place, first in rows:
        about = (escape(replica.name), _count(replica.blocks)) if first else ("", "")
        drawn.add_row(*about, escape(label.partition("://")[2] or label), *_figures(place), escape(place.note))
    return drawn


def verdict(report: AuditReport) -> Iterator[str]:
    """Lines of rich markup: what could not be looked at, and what was found."""
    for label, problem in report.problems.items():
        yield f"[red]{escape(label)}[/]: {escape(problem)}"
    for replica in report.replicas:
        if replica.problem:
            yield f"[red]{escape(replica.name)}[/]: {escape(replica.problem)}"
        for label, place in replica.places.items():
            if place.problem and label not in report.problems:
                yield f"[red]{escape(replica.name)}[/] at {escape(label)}: {escape(place.problem)}"
    if report.left:
        yield f"Left meanwhile: {escape(', '.join(report.left))}."
    yield _sum(report)


def repaired(repairs: Sequence[Repair]) -> Iterator[str]:
    for repair in repairs:
        what = f"{escape(repair.replica)} at {escape(repair.place)}"
        yield f"[red]Not repaired:[/] {what}: {escape(repair.problem)}" if repair.problem else f"Repaired: {what}"


def _sum(report: AuditReport) -> str:
    if not report.replicas:
        return "No replica that reports its blocks was found; nothing was compared."
    blocks = sum(replica.blocks or 0 for replica in report.replicas)
    scope = f"{_many(len(report.replicas), 'replica')} with {_many(blocks, 'block')}, compared with "
    scope += " and ".join(_kinds(report.places))
    wrong = [replica.name for replica in report.replicas if replica.differences]
    if wrong:
        return f"[red]{_many(report.differences, 'difference')}[/] at {escape(', '.join(wrong))}, of {scope}."
    if not report.complete:
        return f"[red]Not everything could be compared.[/] No differences in the rest: {scope}."
    return f"[green]No differences[/]: {scope}."


def _kinds(places: Sequence[str]) -> Iterator[str]:
    if REDIS in places:
        yield REDIS
    if routers := len(places) - (REDIS in places):
        yield _many(routers, "router")


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def _figures(place: PlaceReport) -> tuple[str, str, str]:
    return _count(place.blocks), _count(place.false_positives, "red"), _count(place.false_negatives, "red")


def _count(count: int | None, style: str = "") -> str:
    if count is None:
        return "–"
    return f"[{style}]{count:,}[/]" if style and count else f"{count:,}"
