"""`radixgate bench compare`: the same schedule asked of several servers or policies, in turns, and how they differ.

Owns the command line, and what is written where. Must never lose a run that has finished: a comparison that is ended
early reports those it has.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from loadgen.commands.ending import end
from loadgen.compare.reporting import comparison_of, shown_run
from loadgen.compare.rounds import Finished, Rounds, Rules
from loadgen.compare.schema import ComparisonReport
from loadgen.compare.sides import FORMS, SideSpec, parse_sides
from loadgen.compare.terminal import in_short, table
from loadgen.fleet import FleetParameters
from loadgen.processes import ChildFailed
from loadgen.reports.html import write_html
from loadgen.reports.schema import RunReport, to_json
from loadgen.reports.terminal import warnings
from loadgen.runs.asked import Asked
from loadgen.runs.command import FORMS as PLACEHOLDERS
from loadgen.runs.command import BadCommand
from loadgen.runs.interrupts import Interrupts
from loadgen.runs.live import Live
from loadgen.runs.options import Measure, fleet_options, measure_options, plan_options
from loadgen.runs.output import Output, write_file
from loadgen.runs.probe import StandFailed
from loadgen.runs.ready import allow_many_connections, make_rooms, read_headers

PRINTED_WIDTH = 160
OUTPUT = click.Path(dir_okay=False, path_type=Path)


def _sides(context: click.Context, argument: click.Parameter, texts: Sequence[str]) -> tuple[SideSpec, ...]:
    try:
        return parse_sides(texts)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


@click.command(
    context_settings={"max_content_width": 110},
    epilog=f"A side is {FORMS}. Of a command's placeholders, {PLACEHOLDERS}. A schedule of its own for each repetition "
    "needs servers that did not see the last: see --vary-seed.",
)
@click.argument("sides", nargs=-1, required=True, metavar="A B ...", callback=_sides)
@click.option(
    "--repetitions",
    default=3,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Runs of each side, in turns; from three on, intervals are over repetitions.",
)
@click.option(
    "--vary-seed", is_flag=True, help="A schedule of its own for each repetition: --seed, and those after it."
)
@click.option("--model", default="", help="What to ask URLs for.  [the one each serves]")
@click.option(
    "--header", "headers", multiple=True, metavar="NAME: VALUE", callback=read_headers, help="Goes to URLs, every time."
)
@fleet_options
@plan_options
@measure_options
@click.option("--json", "json_file", type=OUTPUT, help="Write the comparison and the report of each run here.")
@click.option("--html", "html_file", type=OUTPUT, help="Write a report with plots here, one file.")
def compare(
    sides: tuple[SideSpec, ...],
    repetitions: int,
    vary_seed: bool,
    model: str,
    headers: dict[str, str],
    fleet: FleetParameters,
    asked: Asked,
    measure: Measure,
    json_file: Path | None,
    html_file: Path | None,
) -> None:
    """Ask the same schedule of every side, in turns, and report how each differs from the first, with intervals.

    \b
    radixgate bench compare kv least_load --workload rag --arrivals poisson:4 --duration 30
    radixgate bench compare kv 'other=!some-router --port {port} --backends {replicas}' --html report.html
    radixgate bench compare old=http://127.0.0.1:8000 new=http://127.0.0.1:8001 --vary-seed

    Policies and commands get a new fleet of simulated replicas, with empty caches, for each run. Exits with 1 when a
    request failed, a run is not valid, or runs are missing.
    """
    files = {"--json": json_file, "--html": html_file}
    make_rooms(files, {"--trace": asked.trace})
    allow_many_connections()
    rules = Rules(asked, fleet, measure, repetitions, vary_seed, model, headers)
    with Interrupts() as interrupts:
        console = Output(PRINTED_WIDTH, lambda: None if any(files.values()) else interrupts.hear(signal.SIGPIPE))
        asked.plan()  # what cannot be planned is better said at once
        rounds = _run(sides, rules, interrupts, console)
        comparison = comparison_of(rounds, sides, rules)
        if comparison is None:
            click.echo(f"No repetition of all sides has finished: {rounds.interrupted}", err=True)
            raise SystemExit(128 + interrupts.number if interrupts.number else 1)
        failures = [
            write_file("--json", json_file, lambda path: path.write_bytes(to_json(comparison))),
            write_file("--html", html_file, lambda path: _write_html(path, comparison, rounds)),
        ]
        _say(comparison, console)
        sound = all(report.sound for report in runs_of(comparison).values())
        end(failures, interrupts, console, sound=sound and not comparison.interrupted)


def _run(sides: Sequence[SideSpec], rules: Rules, interrupts: Interrupts, console: Console) -> Rounds:
    """What was run."""
    try:
        return interrupts.run(_rounds(sides, rules, interrupts, console))
    except (ChildFailed, StandFailed) as error:
        raise click.ClickException(str(error)) from None
    except BadCommand as error:
        raise click.UsageError(f"{error}.") from None
    except ValueError as error:  # an event that a side cannot have, a URL or a header that is none
        raise click.UsageError(f"{error}.") from None


async def _rounds(sides: Sequence[SideSpec], rules: Rules, interrupts: Interrupts, console: Console) -> Rounds:
    with Live(console) as live:
        rounds = Rounds(sides, rules, live, lambda name, run: _say_finished(console, name, run), interrupts.check)
        interrupts.first(rounds.stop)
        await rounds.run()
    return rounds


def _say_finished(console: Console, name: str, run: Finished) -> None:
    console.print(Text(f"{name}: {in_short(run.repetition, run.report)}"))


def _write_html(path: Path, comparison: ComparisonReport, rounds: Rounds) -> None:
    shown = {name: shown_run(runs) for name, runs in rounds.finished.items()}
    reports = {name: run.report for name, run in shown.items()}
    write_html(path, reports, {name: run.records for name, run in shown.items()}, comparison)


def _say(comparison: ComparisonReport, console: Console) -> None:
    """The table, and what a reader must know."""
    console.print(table(comparison))
    lines = [*warnings(runs_of(comparison)), *(f"Note: {note}." for note in comparison.notes)]
    if comparison.interrupted:
        done, asked = comparison.repetitions_done, comparison.repetitions_asked
        lines.append(f"Ended early, after {done} of {asked} repetitions: {comparison.interrupted}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def runs_of(comparison: ComparisonReport) -> dict[str, RunReport]:
    """Every run's report, by its side and its number from 1."""
    return {f"{side.name} #{run.number + 1}": run.report for side in comparison.sides for run in side.repetitions}
