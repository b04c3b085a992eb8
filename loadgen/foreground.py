"""An experiment in the foreground: where it prints, and how it ends.

Must never let it go on after Ctrl-C or SIGTERM, nor leave out why it failed.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import click

from loadgen.processes import ChildFailed
from loadgen.redis_process import NoRedisServer
from loadgen.runs.interrupts import Interrupts
from loadgen.runs.output import Output

PRINTED_WIDTH = 120

Result = TypeVar("Result")


def printing() -> Output:
    """As wide as the terminal; wide enough for a table where there is none."""
    return Output(PRINTED_WIDTH)


def run_to_its_end(experiment: Coroutine[Any, Any, Result], *failures: type[Exception]) -> Result:
    """Its result. Ctrl-C and SIGTERM cancel it; then this exits with 130 or 143.

    Raises ClickException when one of its processes died or could not be started, or one of the `failures` happened.
    """
    explained: tuple[type[Exception], ...] = (ChildFailed, NoRedisServer, *failures)
    try:
        with Interrupts() as interrupts:
            return interrupts.run(experiment)
    except explained as error:
        raise click.ClickException(str(error)) from None
