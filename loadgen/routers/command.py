"""`make routers`: the same requests to a new fleet in each setting, the routers of several taken in turn.

One router; several that share the tree in Redis; several of which each believes only what it routed itself. Owns the
command line and the order of the runs. Must never compare runs whose requests or replicas differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from loadgen.demo.conclusion import conclude
from loadgen.demo.measuring import Measured, ended, measured
from loadgen.demo.readers import DURATION_S
from loadgen.fleet import FleetParameters
from loadgen.foreground import printing, run_to_its_end
from loadgen.machine import machine
from loadgen.plans.plan import Plan
from loadgen.routers.report import WorkloadRuns, document, hit_rate_lost, table
from loadgen.routers.settings import REFERENCE, SETTINGS, routers_of
from loadgen.routers.workloads import Workload, demo_readers, stretch_of_trace
from loadgen.runs.live import Live
from loadgen.runs.options import POSITIVE, Finite
from loadgen.runs.ready import make_room
from loadgen.runs.stands import policy_stand

POLICY = "kv"


@click.command(context_settings={"max_content_width": 110, "show_default": True})
@click.option("--rag/--no-rag", default=True, help="The demo's readers, on the demo's replicas.")
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A request trace in Mooncake's form (JSON lines; .xz and .gz, too), on replicas as below.",
)
@click.option("--minutes", default=10.0, type=POSITIVE, help="The trace's first minutes.")
@click.option("--speedup", default=4.0, type=POSITIVE, help="The trace's time and its replicas run that much faster.")
@click.option("--replicas", default=8, type=click.IntRange(1, 64), help="Simulated replicas for the trace.")
@click.option("--kv-tokens", default=1_000_000, type=click.IntRange(1), help="KV room of each of them, tokens.")
@click.option("--prefill-rate", default=8000.0, type=POSITIVE, help="Prompt tokens a second, before the speedup.")
@click.option("--max-output", default=64, type=click.IntRange(1), help="Answers of the trace are cut to this: tokens.")
@click.option("--routers", default=3, type=click.IntRange(2), help="How many there are where there are several.")
@click.option("--setting", "settings", multiple=True, type=click.Choice(list(SETTINGS)), help="Only these.")
@click.option("--rounds", default=1, type=click.IntRange(1), help="Runs of each; figures are their medians.")
@click.option("--seed", default=1, help="Of the first round; each round has the next.")
@click.option("--duration", default=DURATION_S, type=Finite(1), help="Seconds of the demo's readers.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here."
)
def main(
    rag: bool,
    trace: Path | None,
    minutes: float,
    speedup: float,
    replicas: int,
    kv_tokens: int,
    prefill_rate: float,
    max_output: int,
    routers: int,
    settings: tuple[str, ...],
    rounds: int,
    seed: int,
    duration: float,
    json_file: Path | None,
) -> None:
    """Compare one router with several: the demo's readers, and a trace."""
    seeds = range(seed, seed + rounds)
    workloads = [demo_readers(seeds, duration)] if rag else []
    if trace is not None:
        size = FleetParameters(replicas, kv_tokens, speedup, prefill_rate)
        workloads.append(stretch_of_trace(trace, minutes, size, max_output, seeds))
    if not workloads:
        raise click.UsageError("There is nothing to run: give --trace FILE, or leave out --no-rag.")
    if json_file is not None:
        make_room(json_file)
    console = printing()
    results = [WorkloadRuns(workload, {name: [] for name in settings or SETTINGS}) for workload in workloads]
    run_to_its_end(_compare(results, routers, json_file, console))
    console.print(table(results, routers))
    _conclude(console, results)


async def _compare(results: Sequence[WorkloadRuns], routers: int, json_file: Path | None, console: Console) -> None:
    """One run after the other, each on a new fleet with empty caches; an interrupted comparison keeps what it has."""
    with Live(console) as live:
        for result in results:
            workload = result.workload
            console.print(f"{workload.name}: {workload.words}", highlight=False, soft_wrap=True)
            for plan in workload.plans:
                for name, runs in result.runs.items():
                    runs.append(await _run(workload, plan, name, routers, live))
                    console.print(ended(name, runs[-1]), highlight=False)
                    _save(json_file, results)


async def _run(workload: Workload, plan: Plan, setting: str, routers: int, live: Live) -> Measured:
    live.say(setting, "starting the fleet")
    stand = policy_stand(POLICY, workload.fleet, plan.seed, name=setting, routers=routers_of(setting, routers))
    return await measured(stand, plan, workload.prompts(plan), live, workload.drain_s)


def _save(json_file: Path | None, results: Sequence[WorkloadRuns]) -> None:
    if json_file is not None:
        json_file.write_bytes(document(results))


def _conclude(console: Console, results: Sequence[WorkloadRuns]) -> None:
    """The result in sentences; exit code 1 if anything failed."""
    named: dict[str, Measured] = {}
    for result in results:
        asked = result.workload.name
        for name, runs in result.runs.items():
            named |= {f"{asked}, {name}, run {at}": run for at, run in enumerate(runs, 1)}
            lost = hit_rate_lost(result.runs, name)
            if name != REFERENCE and lost is not None:
                where = "below" if lost >= 0 else "above"
                console.print(f"{asked}, {name}: {abs(lost):.1f} points of hit rate {where} one router.")
    here = machine()
    console.print(f"Measured on {here['platform']}, {here['cores']} cores, Python {here['python']}.", highlight=False)
    conclude(named, console)
