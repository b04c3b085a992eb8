"""How a command that measured ends: with which exit code."""

from __future__ import annotations

from collections.abc import Sequence

import click

from loadgen.runs.interrupts import Interrupts
from loadgen.runs.output import Output


def end(failures: Sequence[str], interrupts: Interrupts, console: Output, *, sound: bool) -> None:
    """Says what could not be written ("" is no failure). Exits with 128 + the signal that was heard, or with 1 where
    something is missing, or the figures are not `sound`.
    """
    said = [failure for failure in failures if failure]
    for failure in said:
        click.echo(f"Error: {failure}", err=True)
    console.check()
    if interrupts.number is not None:
        raise SystemExit(128 + interrupts.number)
    if said or not sound:
        raise SystemExit(1)
