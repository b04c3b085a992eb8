"""`radixgate bench`: the group of the measuring commands.

Owns nothing else: each command has a file of its own.
"""

from __future__ import annotations

import click

from loadgen.commands.compare import compare
from loadgen.commands.export import export
from loadgen.commands.grid import grid
from loadgen.commands.replay import replay
from loadgen.commands.run import run
from loadgen.commands.simulate import simulate


@click.group()
def bench() -> None:
    """Measure routing: in simulated time, or against servers."""


bench.add_command(run)
bench.add_command(compare)
bench.add_command(replay)
bench.add_command(export)
bench.add_command(simulate)
bench.add_command(grid)
