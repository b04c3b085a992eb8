"""`radixgate bench run`: one plan asked once of one target, and what came of it.

Owns the command line, and what is written where. Must never lose what was measured: an interrupted run is reported.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
from rich.console import Console

from loadgen.commands.ending import end
from loadgen.compare.regret import regret_mean_s
from loadgen.fleet import FleetParameters
from loadgen.plans.plan import Plan
from loadgen.plans.prompts import Prompts
from loadgen.processes import ChildFailed
from loadgen.records import Record
from loadgen.reports.html import write_html
from loadgen.reports.schema import RunReport, to_json
from loadgen.reports.terminal import table, warnings
from loadgen.runs.asked import Asked, fitting
from loadgen.runs.command import FORMS, BadCommand
from loadgen.runs.interrupts import Interrupted, Interrupts
from loadgen.runs.live import Live
from loadgen.runs.once import RunResult, run_once
from loadgen.runs.options import Measure, fleet_options, measure_options, plan_options
from loadgen.runs.output import Output, write_file
from loadgen.runs.probe import StandFailed
from loadgen.runs.ready import allow_many_connections, check_url, make_rooms, read_headers
from loadgen.runs.receipts import write_receipts
from loadgen.runs.reporting import ideals_of, report_of
from loadgen.runs.runner import Runner
from loadgen.runs.stands import Stand, command_stand, policy_stand, url_stand
from loadgen.runs.target import Target
from scoring.policies import POLICIES

PRINTED_WIDTH = 120
OUTPUT = click.Path(dir_okay=False, path_type=Path)


class Asking(NamedTuple):
    """Everything that a run needs but its stand."""

    plan: Plan
    prompts: Prompts
    measure: Measure


@click.command(context_settings={"max_content_width": 110})
@click.option(
    "--url",
    "urls",
    multiple=True,
    metavar="URL",
    callback=check_url,
    help="A server with OpenAI's API that runs already; repeat for several before the same fleet.",
)
@click.option("--model", default="", help="What to ask it for.  [the one it serves]")
@click.option(
    "--control",
    metavar="URL",
    callback=check_url,
    help="Its control port, if it is a RadixGate router: receipts are read there.",
)
@click.option(
    "--header", "headers", multiple=True, metavar="NAME: VALUE", callback=read_headers, help="Goes with every request."
)
@click.option("--command", metavar="COMMAND", help=f"Or a router to be started before simulated replicas. {FORMS}.")
@click.option(
    "--policy",
    default="kv",
    show_default=True,
    type=click.Choice(list(POLICIES)),
    help="Or else RadixGate's own router, before simulated replicas.",
)
@click.option("--name", default="", help="What reports call it.")
@fleet_options
@plan_options
@measure_options
@click.option("--json", "json_file", type=OUTPUT, help="Write the figures here.")
@click.option("--jsonl", "jsonl_file", type=OUTPUT, help="Write each request here, one a line.")
@click.option("--html", "html_file", type=OUTPUT, help="Write a report with plots here, one file.")
@click.option("--receipts", "receipts_file", type=OUTPUT, help="Write the router's receipts here, for `bench replay`.")
def run(
    urls: tuple[str, ...],
    model: str,
    control: str | None,
    headers: dict[str, str],
    command: str | None,
    policy: str,
    name: str,
    fleet: FleetParameters,
    asked: Asked,
    measure: Measure,
    json_file: Path | None,
    jsonl_file: Path | None,
    html_file: Path | None,
    receipts_file: Path | None,
) -> None:
    """Put a server, or a small simulated fleet, under a load that is the same every time, and report how it fared.

    \b
    radixgate bench run --workload rag --arrivals poisson:2 --duration 30
    radixgate bench run --url http://127.0.0.1:8080 --workload chat --arrivals closed:16 --html report.html
    radixgate bench run --trace conversation.jsonl.xz --token-scale 8 --rate-scale 4 --duration 60 --json out.json
    radixgate bench run --policy least_load --event 10:kill:r1 --event 20:add
    radixgate bench run --command 'some-router --port {port} --backends {replicas}'

    Exits with 1 when a request failed or the run is not valid.
    """
    if urls and command:
        raise click.UsageError("--url and --command exclude each other.")
    files = {"--json": json_file, "--jsonl": jsonl_file, "--html": html_file, "--receipts": receipts_file}
    make_rooms(files, {"--trace": asked.trace})
    if receipts_file is not None and (command or (urls and not control)):
        raise click.BadParameter("only a RadixGate router has any: name its --control.", param_hint="--receipts")
    with Interrupts() as interrupts:
        plan = asked.plan()
        asking = Asking(plan, asked.prompts(plan), measure)
        console = Output(PRINTED_WIDTH, lambda: None if any(files.values()) else interrupts.hear(signal.SIGPIPE))
        stand: AbstractAsyncContextManager[Stand]
        if urls:
            stand = url_stand(urls, name=name, model=model, control=control, headers=headers)
        elif command:
            stand = command_stand(name or command.split()[0], command, fitting(fleet, plan))
        else:
            stand = policy_stand(policy, fitting(fleet, plan), asked.seed, name=name)
        target, result = _measured(stand, asking, console, interrupts)
        failures = [
            write_file("--jsonl", jsonl_file, lambda path: write_records(path, result.records)),
            write_file("--receipts", receipts_file, lambda path: write_receipts(path, result.receipts)),
        ]
        wanted = measure.ideals and result.interrupted is None
        ideals = ideals_unless_interrupted(asking, target, result, interrupts, console) if wanted else None
        report = report_of(target, plan, result, measure, ideals, regret_mean_s(result.receipts))
        called = report.name
        failures += [
            write_file("--json", json_file, lambda path: path.write_bytes(to_json(report))),
            write_file("--html", html_file, lambda path: write_html(path, {called: report}, {called: result.records})),
        ]
        _say(report, result, console)
        end(failures, interrupts, console, sound=report.sound)


def _measured(
    stand: AbstractAsyncContextManager[Stand], asking: Asking, console: Console, interrupts: Interrupts
) -> tuple[Target, RunResult]:
    """The run: what was asked, and what came of it."""
    allow_many_connections()
    try:
        return interrupts.run(_measure(stand, asking, console, interrupts))
    except (ChildFailed, StandFailed) as error:
        raise click.ClickException(str(error)) from None
    except BadCommand as error:
        raise click.BadParameter(f"{error}.", param_hint="--command") from None
    except ValueError as error:  # an event that this stand cannot have, a URL or a header that is none
        raise click.UsageError(f"{error}.") from None


async def _measure(
    opening: AbstractAsyncContextManager[Stand], asking: Asking, console: Console, interrupts: Interrupts
) -> tuple[Target, RunResult]:
    with Live(console) as live:
        live.say("bench run", "starting what is to be asked")
        async with opening as stand:
            plan, measure = asking.plan, asking.measure
            live.say(
                stand.target.name, f"{plan.requests} requests in {plan.duration_s:g} s: {stand.target.description}"
            )
            runner = Runner(
                stand.target,
                plan,
                asking.prompts,
                drain_s=measure.drain_s,
                session_header=measure.session_header,
            )
            interrupts.first(lambda name: runner.stop(f"{name} after {runner.now():.1f} s"))
            result = await run_once(runner, stand, measure.events, live.follow)
    return stand.target, result


def ideals_unless_interrupted(
    asking: Asking, target: Target, result: RunResult, interrupts: Interrupts, console: Console
) -> dict[str, float | None] | None:
    """They may take a minute for a long trace: whoever does not want to wait for them still gets everything else."""
    try:
        return ideals_of(asking.plan, asking.prompts, target, result.records, interrupts.check)
    except Interrupted:
        console.print("The ideal hit rates were not waited for; --no-ideals leaves them out.", highlight=False)
        return None


def write_records(path: Path, records: Sequence[Record]) -> None:
    """One a line, as JSON, by the time they were due. Raises OSError."""
    ordered = sorted(records, key=lambda record: (record.due, record.session, record.turn))
    path.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in ordered))


def _say(report: RunReport, result: RunResult, console: Console) -> None:
    """The table, and what a reader must know."""
    console.print(table({report.name: report}))
    for event in report.events:
        if not event.error:
            console.print(f"At {event.at_s:.1f} s: {event.what}", highlight=False, markup=False, soft_wrap=True)
    for line in warnings({report.name: report}):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if result.receipts_failure:
        console.print(f"receipts: {result.receipts_failure}", highlight=False, markup=False, soft_wrap=True)
