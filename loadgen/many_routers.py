"""`make routers`: what several routers know together, against one router, and against each knowing only its own.

The same requests go to a new fleet in each of three settings: one router; three routers that share the tree in Redis;
three routers of which each believes only what it routed itself. The client takes the routers in turn. Owns the command
line and the order of the runs. Must never compare runs whose requests or replicas differ.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
import msgspec
import uvloop
from rich.console import Console

from loadgen.attended import CpuMeter, attended, machine_warnings
from loadgen.cli import FLEET, READERS, TERMINATED, demo_workload
from loadgen.client import OpenLoopClient, Schedule
from loadgen.display import Display
from loadgen.fleet import FleetParameters, Routers, local_fleet
from loadgen.machine import machine
from loadgen.many_report import REFERENCE, SETTINGS, WorkloadRuns, hit_rate_lost, table
from loadgen.processes import ChildFailed
from loadgen.redis_process import NoRedisServer
from loadgen.replay import Replay, ordinary_tokens
from loadgen.report import PolicyReport, Slo, failures, summarise
from loadgen.traces import BlockTokens, TraceError, TraceRequest, facts, read_trace
from replica import tokenizer

POLICY = "kv"
DRAIN_S = 60.0
POSITIVE = click.FloatRange(0, min_open=True)


class Plan(msgspec.Struct, frozen=True):
    """One workload: what is asked in a given round (from 0), and of which replicas."""

    name: str
    words: str
    facts: dict[str, object]
    fleet: FleetParameters
    schedule: Callable[[int], Schedule]


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
@click.option("--duration", default=READERS.duration_s, type=click.FloatRange(1), help="Seconds of the demo's readers.")
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
    plans = [_readers(duration, seed)] if rag else []
    if trace is not None:
        size = FleetParameters(replicas, kv_tokens, speedup, prefill_rate)
        plans.append(_replay(_read(trace, minutes), size, max_output, seed))
    if not plans:
        raise click.UsageError("There is nothing to run: give --trace FILE, or leave out --no-rag.")
    console = Console()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            chosen = {name: _routers(name, routers) for name in settings or SETTINGS}
            results = runner.run(_compare(plans, chosen, rounds, seed, json_file, console))
    except (ChildFailed, NoRedisServer) as error:
        raise click.ClickException(str(error)) from None
    except asyncio.CancelledError:
        raise SystemExit(TERMINATED) from None
    console.print(table(results, routers))
    _conclude(console, results)


def _routers(name: str, several: int) -> Routers:
    return Routers(1 if name == REFERENCE else several, SETTINGS[name])


def _readers(duration_s: float, seed: int) -> Plan:
    parameters = msgspec.structs.replace(READERS, duration_s=duration_s)
    words = (
        f"the demo's readers of a library, {duration_s:g} s; {FLEET.replicas} replicas with KV room for "
        f"{FLEET.kv_tokens:,} tokens each."
    )
    said = msgspec.to_builtins(parameters)
    return Plan("demo", words, said, FLEET, lambda number: demo_workload(parameters, seed + number))


def _read(trace: Path, minutes: float) -> list[TraceRequest]:
    try:
        requests = list(read_trace(trace, minutes * 60))
    except TraceError as error:
        raise click.BadParameter(str(error), param_hint="--trace") from None
    if not requests:
        raise click.BadParameter(f"{trace} has no requests.", param_hint="--trace")
    return requests


def _replay(requests: Sequence[TraceRequest], size: FleetParameters, max_output: int, seed: int) -> Plan:
    """The replicas' context is as long as the trace needs."""
    vocabulary = ordinary_tokens(tokenizer.directory())
    said = facts(requests)
    longest = Replay(requests, BlockTokens(vocabulary), max_output=max_output).longest
    if longest > size.kv_tokens:
        raise click.BadParameter(
            f"the longest request has {longest} tokens; give at least that.", param_hint="--kv-tokens"
        )
    load = said.prompt_tokens / max(said.duration_s, 1.0) / size.replicas / size.prefill_rate
    words = (
        f"{said.requests:,} requests of {said.duration_s:,.0f} s, {said.prompt_tokens / said.requests:,.0f} prompt "
        f"tokens each, answers of {max_output} tokens at most, all x{size.speedup:g} as fast; {size.replicas} replicas "
        f"with KV room for {size.kv_tokens:,} tokens each, which prefill would keep {load:.0%} busy if there were no "
        f"cache. A cache of all of it would hit {1 - said.distinct_blocks / said.blocks:.1%} of the blocks."
    )
    return Plan(
        "trace",
        words,
        {**msgspec.to_builtins(said), "max_output": max_output, "prefill_load_without_cache": load},
        msgspec.structs.replace(size, max_model_len=longest),
        lambda number: Replay(
            requests, BlockTokens(vocabulary, seed + number), speedup=size.speedup, max_output=max_output
        ),
    )


async def _compare(
    plans: Sequence[Plan],
    settings: Mapping[str, Routers],
    rounds: int,
    seed: int,
    json_file: Path | None,
    console: Console,
) -> list[WorkloadRuns]:
    """One run after the other, each on a new fleet with empty caches. Cancelled by SIGTERM."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    results = [
        WorkloadRuns(plan.name, plan.words, plan.facts, plan.fleet, {key: [] for key in settings}) for plan in plans
    ]
    with Display(console) as display:
        for plan, result in zip(plans, results, strict=True):
            console.print(f"{plan.name}: {plan.words}", highlight=False, soft_wrap=True)
            for number in range(rounds):
                schedule = plan.schedule(number)
                for name, routers in settings.items():
                    result.runs[name].append(await _run(plan, schedule, name, routers, seed + number, display))
                    _save(json_file, results)
    return results


async def _run(
    plan: Plan, schedule: Schedule, name: str, routers: Routers, seed: int, display: Display
) -> PolicyReport:
    bar = display.begin(name, schedule.duration_s)
    with CpuMeter() as meter:
        async with local_fleet(POLICY, plan.fleet, routers, seed) as fleet:
            url, *siblings = fleet.urls
            client = OpenLoopClient(url, fleet.model, schedule, siblings=siblings, drain_s=DRAIN_S)
            records = await attended(client, fleet, display.follow(bar, client))
    report = msgspec.structs.replace(summarise(records, Slo(), plan.fleet.replicas), cores_busy=meter.cores_busy)
    display.end(bar, name, report)
    return report


def _save(json_file: Path | None, results: Sequence[WorkloadRuns]) -> None:
    """After every run: an interrupted comparison keeps what it has."""
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_bytes(
            msgspec.json.format(msgspec.json.encode({"machine": machine(), "workloads": results})) + b"\n"
        )


def _conclude(console: Console, results: Sequence[WorkloadRuns]) -> None:
    """The result in sentences; exit code 1 if anything failed."""
    wrong = []
    for result in results:
        for name in result.runs:
            lost = hit_rate_lost(result.runs, name)
            if name != REFERENCE and lost is not None:
                where = "below" if lost >= 0 else "above"
                console.print(f"{result.name}, {name}: {abs(lost):.1f} points of hit rate {where} one router.")
        named = {
            f"{result.name}, {name}, run {at}": run
            for name, runs in result.runs.items()
            for at, run in enumerate(runs, 1)
        }
        for warning in machine_warnings(named):
            console.print(f"[yellow]Beware:[/] {warning}", highlight=False)
        wrong += failures(named)
    here = machine()
    console.print(f"Measured on {here['platform']}, {here['cores']} cores, Python {here['python']}.", highlight=False)
    if wrong:
        raise click.ClickException("\n".join(wrong))


if __name__ == "__main__":
    main()
