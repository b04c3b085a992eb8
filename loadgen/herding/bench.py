"""`make herding`: how evenly several routers spread a burst, with one shared load ledger and with a private one each.

The replicas are fakes that hold every request until the whole burst has come, so that what is measured is where
requests go, and nothing else. Owns the command line and the order of the bursts. Must never compare bursts that differ.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from statistics import median

import click
import msgspec
from rich.console import Console
from rich.table import Table

from loadgen.fleet import Truth, start_routers, truth_flags, until_up
from loadgen.foreground import printing, run_to_its_end
from loadgen.herding.bursts import SCENARIOS, BurstParameters
from loadgen.herding.client import BurstClient
from loadgen.herding.fake_replicas import fake_replicas
from loadgen.herding.stand import BurstFailed, Spread, Stand
from loadgen.machine import machine
from loadgen.processes import Children
from loadgen.redis_process import RedisServer
from loadgen.routers.settings import REFERENCE, SETTINGS, TITLES

POLICY = "kv"
GOAL = 1.3
LATE_FACTOR = 2.0

Results = dict[str, dict[str, list[Spread]]]
"""By scenario, then by setting: each burst."""


@click.command(context_settings={"max_content_width": 110, "show_default": True})
@click.option("--scenario", "scenarios", multiple=True, type=click.Choice(list(SCENARIOS)), help="Only these.")
@click.option("--setting", "settings", multiple=True, type=click.Choice(list(SETTINGS)), help="Only these.")
@click.option("--bursts", default=9, type=click.IntRange(1), help="Of each scenario; figures are their medians.")
@click.option("--requests", default=200, type=click.IntRange(1, 1000), help="In a burst.")
@click.option("--window-ms", default=50.0, type=click.FloatRange(1), help="Time in which they are sent.")
@click.option("--routers", default=4, type=click.IntRange(2, 16), help="How many there are where there are several.")
@click.option("--replicas", default=8, type=click.IntRange(1, 64), help="Equal replicas.")
@click.option("--seed", default=1, help="Of the first burst; each has the next.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here."
)
def main(
    scenarios: tuple[str, ...],
    settings: tuple[str, ...],
    bursts: int,
    requests: int,
    window_ms: float,
    routers: int,
    replicas: int,
    seed: int,
    json_file: Path | None,
) -> None:
    """Measure how evenly a burst is spread over equal replicas by one router, and by several."""
    console = printing()
    asked = BurstParameters(requests, window_ms / 1e3, routers)
    plan = {name: range(seed, seed + bursts) for name in scenarios or SCENARIOS}
    for name in plan:
        console.print(f"{name}: {SCENARIOS[name][1]}", highlight=False, soft_wrap=True)
    results = run_to_its_end(_compare(asked, plan, settings or tuple(SETTINGS), replicas, console), BurstFailed)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        said = {"machine": machine(), "burst": asked, "replicas": replicas, "seed": seed, "spreads": results}
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(said)) + b"\n")
    console.print(table(results, asked, replicas))
    _conclude(console, results, asked)


async def _compare(
    asked: BurstParameters,
    plan: Mapping[str, Sequence[int]],
    settings: Sequence[str],
    replicas: int,
    console: Console,
) -> Results:
    """One setting after the other, each on new routers. `plan` has each scenario's seeds."""
    results: Results = {name: {setting: [] for setting in settings} for name in plan}
    for setting in settings:
        routers = 1 if setting == REFERENCE else asked.routers
        async with _stand(SETTINGS[setting], routers, replicas) as stand:
            for name, seeds in plan.items():
                for seed in seeds:
                    burst = SCENARIOS[name][0](asked, Random(f"{name} {seed}"))
                    results[name][setting].append(await stand.run(burst))
        console.print(f"{TITLES[setting].format(routers)}: done", style="dim", highlight=False)
    return results


@asynccontextmanager
async def _stand(truth: Truth, routers: int, replicas: int) -> AsyncIterator[Stand]:
    """Routers of our own in front of fakes, and connections for a burst."""
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer()).url if truth == "redis" else None
        children = stack.enter_context(Children())
        flags = ["--policy", POLICY, *truth_flags(truth, redis)]
        started, urls, controls = await start_routers(children, routers, flags, seed=1)
        stand = Stand(children, controls, reported=truth != "private", shared=truth == "redis")
        fakes = fake_replicas(replicas, stand.took)
        for fake in fakes:
            stack.push_async_callback(fake.stop)
            await fake.start(controls=() if redis else controls, reports=[redis] if redis else ())
        await until_up(children, started, controls, replicas)
        client = await stack.enter_async_context(BurstClient(urls))
        await stand.open(stack, client, fakes)
        yield stand


def table(results: Results, asked: BurstParameters, replicas: int) -> Table:
    """Busiest replica over the mean, and what routers did not know of when they decided; medians over bursts."""
    settings = [name for name in SETTINGS if any(name in by_setting for by_setting in results.values())]
    grid = Table(
        title=f"{asked.requests} requests in {asked.window_s * 1e3:g} ms over {replicas} equal replicas: busiest / mean"
    )
    grid.add_column("")
    for name in settings:
        grid.add_column(TITLES[name].format(asked.routers), justify="right")
    for name, by_setting in results.items():
        grid.add_section()
        grid.add_row(f"[bold]{name}[/]")
        for label, field in (("requests", "requests"), ("prompt tokens", "prompt"), ("computed tokens", "computed")):
            grid.add_row(f"  {label}", *(f"{_median(by_setting.get(key, ()), field):.2f}" for key in settings))
        if any(spread.hit_rate for spreads in by_setting.values() for spread in spreads):
            grid.add_row("  hit rate", *(f"{_median(by_setting.get(key, ()), 'hit_rate'):.1%}" for key in settings))
        grid.add_row("  unseen", *(f"{_median(by_setting.get(key, ()), 'unseen'):.0f}" for key in settings))
    return grid


def _median(spreads: Sequence[Spread], field: str) -> float:
    return median(getattr(spread, field) for spread in spreads) if spreads else float("nan")


def _conclude(console: Console, results: Results, asked: BurstParameters) -> None:
    shared = results.get("equal", {}).get("shared", [])
    if shared:
        reached = _median(shared, "requests")
        verdict = "reached" if reached <= GOAL else "missed"
        console.print(f"Equal prompts over one ledger: {reached:.2f}; the goal, at most {GOAL:g}, is {verdict}.")
    everything = [spread for by_setting in results.values() for spreads in by_setting.values() for spread in spreads]
    sent, arrived = (_median(everything, field) * 1e3 for field in ("sending_s", "arriving_s"))
    console.print("Unseen: open requests that the deciding router did not know of, the mean over decisions.")
    console.print(f"Sent within {sent:.0f} ms, arrived at the replicas within {arrived:.0f} ms (medians).")
    late = sum(spread.arriving_s > LATE_FACTOR * asked.window_s for spread in everything)
    if late:
        console.print(
            f"[yellow]Beware:[/] {late} of {len(everything)} bursts took the routers more than {LATE_FACTOR:g} times "
            "the time they were due in: routers with a core each would decide, and hear of each other, sooner.",
            highlight=False,
        )
    here = machine()
    console.print(f"Measured on {here['platform']}, {here['cores']} cores, Python {here['python']}.", highlight=False)
