"""`radixgate bench grid`: `bench simulate` over a grid of set-ups, in parallel, as one Markdown table.

Owns the command line.
"""

from __future__ import annotations

import os
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from loadgen.runs.interrupts import Interrupts
from loadgen.runs.options import Finite
from loadgen.virtual.grid import CellFailed, cells, simulate_all
from loadgen.virtual.grid_table import tables

AT_LEAST_1 = click.IntRange(1)
POSITIVE = Finite(0, min_open=True)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--trace",
    "traces",
    required=True,
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Requests in Mooncake's form; repeat for more.",
)
@click.option(
    "--capacity-tokens", "capacities", multiple=True, default=(1_000_000,), show_default=True, type=AT_LEAST_1
)
@click.option("--replicas", multiple=True, default=(4, 8, 16), show_default=True, type=AT_LEAST_1)
@click.option("--rate-scale", "rate_scales", multiple=True, default=(1.0,), show_default=True, type=POSITIVE)
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, type=AT_LEAST_1, help="At once.")
@click.option(
    "--out",
    "directory",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for each cell's JSON. A cell whose file is there is not simulated again.",
)
@click.argument("shared", nargs=-1, type=click.UNPROCESSED)
def grid(
    traces: tuple[Path, ...],
    capacities: tuple[int, ...],
    replicas: tuple[int, ...],
    rate_scales: tuple[float, ...],
    jobs: int,
    directory: Path,
    shared: tuple[str, ...],
) -> None:
    """Simulate every combination of trace, capacity, fleet size and rate; print Markdown tables.

    Whatever follows -- goes to each `bench simulate`, for example: -- --policy kv --policy like_llmd --prefill-only

    Each cell of the table says: mean TTFT / p99, in seconds · hit rate; below it, where replicas decode: mean TPOT and
    the share of requests that met the SLO.
    """
    listed = cells(traces, capacities, replicas, rate_scales)
    if len({cell.file(shared) for cell in listed}) < len(listed):
        raise click.UsageError(
            "two simulations would share a file: --trace names must differ before their first dot, and --rate-scale in "
            "its first six digits; rename a trace, or simulate it into another --out"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot make the folder {directory} (--out): {error.strerror}.") from None
    try:
        with Interrupts() as interrupts, Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("simulating", total=len(listed))
            simulations = simulate_all(listed, shared, directory, jobs, lambda: progress.advance(task))
            results = interrupts.run(simulations)
    except CellFailed as error:
        raise click.ClickException(str(error)) from None
    for line in tables(results):
        click.echo(line)
