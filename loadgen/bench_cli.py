"""`radixgate bench`: the group of the measuring commands.

Owns nothing else: each command has a file of its own.
"""

from __future__ import annotations

import click

from loadgen.compare_cli import compare
from loadgen.export_cli import export
from loadgen.grid_cli import grid
from loadgen.replay_cli import replay
from loadgen.run_cli import run
from loadgen.virtual_cli import simulate


@click.group()
def bench() -> None:
    """Measure routing: in simulated time, or against servers."""


bench.add_command(run)
bench.add_command(compare)
bench.add_command(replay)
bench.add_command(export)
bench.add_command(simulate)
bench.add_command(grid)
