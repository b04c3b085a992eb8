"""`make bench`: measures the parts on the hot path, each by itself.

Owns the tables and build/bench.json. A section is a function that returns rows; add one to SECTIONS. Must never start
anything that outlives it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from loadgen.machine import machine
from loadgen.micro.index import index_section
from loadgen.micro.redis import redis_section
from loadgen.micro.router import router_section
from loadgen.micro.row import Row

SECTIONS: dict[str, Callable[[], list[Row]]] = {
    "index": index_section,
    "router": router_section,
    "redis": redis_section,
}


@click.command(help="Measure the parts on the hot path.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here, too."
)
@click.option("--only", type=click.Choice(list(SECTIONS)), multiple=True, help="Only these sections.")
def main(json_path: Path | None, only: tuple[str, ...]) -> None:
    console = Console()
    results = {}
    for name in only or SECTIONS:
        started = time.monotonic()
        rows = SECTIONS[name]()
        for table in tables(rows):
            console.print(table)
        console.print(f"section {name}: {time.monotonic() - started:.0f} s\n", style="dim")
        results[name] = rows
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode({"machine": machine(), "sections": results})))


def tables(rows: list[Row]) -> list[Table]:
    """One table for each title, with the columns that its rows have."""
    made = []
    for title in dict.fromkeys(row.table for row in rows):
        lines = [row for row in rows if row.table == title]
        columns = list(dict.fromkeys(column for row in lines for column in row.figures))
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for column in columns:
            table.add_column(column, justify="right")
        for row in lines:
            table.add_row(row.what, *(figure(row.figures.get(column)) for column in columns))
        made.append(table)
    return made


def figure(value: float | None) -> str:
    """Three significant digits, and no more of the rest than counts."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
