"""What to beware of, and what makes a comparison none."""

from __future__ import annotations

import io
import os

import click
import msgspec
import pytest
from rich.console import Console

from loadgen.demo.conclusion import conclude, machine_warnings
from loadgen.demo.measuring import SLO, Measured
from loadgen.reports.figures import Setting
from tests.loadgen.demo.runs import run
from tests.loadgen.reports.samples import failure, record, report


def test_times_that_show_the_machine_are_warned_of() -> None:
    cores = os.cpu_count() or 1
    assert list(machine_warnings({"kv": run(cores_busy=0.5 * cores, lag_p99_s=0.05)})) == []
    (busy,) = machine_warnings({"kv": run(cores_busy=0.9 * cores)})
    assert f"under kv, {0.9 * cores:.1f} of {cores} cores were busy" in busy
    (late,) = machine_warnings({"kv": run(cores_busy=0.0, lag_p99_s=0.25)})
    assert "the client itself was late by 250 ms" in late


def concluded(runs: dict[str, Measured]) -> str:
    """What is printed."""
    console = Console(file=io.StringIO(), width=160)
    conclude(runs, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_is_doubtful_is_printed_and_what_is_well_is_not() -> None:
    assert concluded({"kv": run(cores_busy=0.0, lag_p99_s=0.0)}) == ""
    assert concluded({"[red]": run(cores_busy=0.0, lag_p99_s=0.25)}).startswith(
        "Beware: under [red], the client itself"
    )


def test_failures_name_the_policy_and_the_message() -> None:
    records = [record(), failure(error="HTTP 500: oops"), failure(error="HTTP 500: oops")]
    bad = Measured(report(records, Setting(slo=SLO)), 0.0)
    with pytest.raises(click.ClickException, match=r"^random: 2 x HTTP 500: oops$"):
        concluded({"kv": run(cores_busy=0.0), "random": bad})


def test_a_run_that_measured_nothing_is_no_comparison() -> None:
    nothing = Measured(report([failure()], Setting(slo=SLO)), 0.0)
    with pytest.raises(click.ClickException, match="kv is invalid: every request failed"):
        concluded({"kv": nothing})
    unasked = msgspec.structs.replace(nothing, report=report([], Setting(slo=SLO)))
    with pytest.raises(click.ClickException, match="no request was due"):
        concluded({"kv": unasked})
