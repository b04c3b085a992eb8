"""What a reader must know beside the figures of a comparison, and whether it was one at all.

Owns the signs that times show this machine rather than what is compared. Must never let a failure pass for a result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import click
from rich.console import Console
from rich.text import Text

from loadgen.demo.measuring import Measured
from loadgen.reports.terminal import warnings

BUSY_SHARE = 0.8
LATE_S = 0.1


def conclude(runs: Mapping[str, Measured], console: Console) -> None:
    """Prints what to beware of. Raises ClickException, a line for each reason, when a request failed or a run is not
    valid."""
    reports = {name: run.report for name, run in runs.items()}
    wrong = {name for name, report in reports.items() if not report.sound}
    doubts = warnings({name: report for name, report in reports.items() if name not in wrong})
    for line in (*machine_warnings(runs), *doubts):
        console.print(Text.assemble(("Beware: ", "yellow"), line), soft_wrap=True)
    if wrong:
        raise click.ClickException("\n".join(warnings({name: reports[name] for name in reports if name in wrong})))


def machine_warnings(runs: Mapping[str, Measured]) -> Iterator[str]:
    """Signs that times show this machine rather than what is compared."""
    cores = os.cpu_count() or 1
    for name, run in runs.items():
        if run.cores_busy > BUSY_SHARE * cores:
            yield f"under {name}, {run.cores_busy:.1f} of {cores} cores were busy; times show this machine too."
        late_s = run.report.figures.lag_p99_s or 0.0
        if late_s > LATE_S:
            yield f"under {name}, the client itself was late by {late_s * 1e3:,.0f} ms (p99); run it again."
