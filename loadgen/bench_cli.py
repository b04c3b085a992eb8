"""`radixgate bench`: the group of the measuring commands.

Owns nothing else: each command has a file of its own.
"""

from __future__ import annotations

import click

from loadgen.virtual_cli import simulate


@click.group()
def bench() -> None:
    """Measure routing: in simulated time, or against servers."""


bench.add_command(simulate)
