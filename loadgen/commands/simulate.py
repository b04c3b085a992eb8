"""`radixgate bench simulate`: a trace against a simulated fleet under several policies, without waiting for it.

Owns the command line. Must never let anything but its options and the trace decide what is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import click

from loadgen.reports.schema import Slo, to_json
from loadgen.runs.options import Finite
from loadgen.runs.output import Output, write_file
from loadgen.runs.ready import make_rooms
from loadgen.traces import BLOCK_TOKENS, TraceError, read_trace
from loadgen.virtual.channel import Line
from loadgen.virtual.fleet import FleetSetup, Outcome, VirtualFleet
from loadgen.virtual.ideals import infinite_hit_rate, pooled_hit_rate
from loadgen.virtual.incidents import FORMS, Incident, check_incidents, parse_incident
from loadgen.virtual.prompts import Ask, asks
from loadgen.virtual.report import SCHEMA, PolicyFigures, SimulationReport, figures, table
from replica.reuse import DEFAULT_EVICTION, EVICTIONS, make_eviction
from replica.scheduler import SchedulerLimits
from replica.simulated import TimingModel
from scoring.policies import POLICIES, make_policy

PROGRESS_EVERY_S = 2.0
PRINTED_WIDTH = 120
TIMING = TimingModel()
LIMITS = SchedulerLimits()
SLO = Slo()

POSITIVE = Finite(0, min_open=True)
MOST_WINDOWS = 100_000


def _incidents(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[Incident, ...]:
    try:
        return tuple(map(parse_incident, texts))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.option(
    "--trace",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Requests in Mooncake's form; may be compressed (.xz, .gz).",
)
@click.option("--until", type=POSITIVE, help="Only the first so many seconds of the trace.")
@click.option(
    "--rate-scale", default=1.0, show_default=True, type=POSITIVE, help="Requests come so many times as fast."
)
@click.option(
    "--token-scale",
    default=1,
    show_default=True,
    type=click.IntRange(1, BLOCK_TOKENS),
    help="Full model only: prompts and answers have so many times fewer tokens.",
)
@click.option("--replicas", default=8, show_default=True, type=click.IntRange(1))
@click.option(
    "--capacity-tokens", default=1_000_000, show_default=True, type=click.IntRange(1), help="KV cache of one replica."
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    default=("round_robin", "least_load", "kv"),
    show_default=True,
    type=click.Choice(list(POLICIES)),
    help="Repeat to compare.",
)
@click.option(
    "--prefill-only",
    is_flag=True,
    help="Each replica prefills one request after the other, and nothing decodes; blocks are the trace's.",
)
@click.option(
    "--utilisation",
    type=POSITIVE,
    help="Sets the prefill rate so that the trace without any cache keeps the fleet's prefill busy this share of its "
    "span. Default with --prefill-only: 1.",
)
@click.option(
    "--prefill-rate", type=POSITIVE, help=f"Tokens a second of one replica. Default: {TIMING.prefill_rate:g}."
)
@click.option("--block-size", default=BLOCK_TOKENS, show_default=True, type=click.IntRange(1), help="Full model only.")
@click.option(
    "--max-batched-tokens", default=LIMITS.max_batched_tokens, show_default=True, type=click.IntRange(1), help="A step."
)
@click.option("--max-running", default=LIMITS.max_running, show_default=True, type=click.IntRange(1), help="Requests.")
@click.option(
    "--eviction",
    default=DEFAULT_EVICTION,
    show_default=True,
    type=click.Choice(EVICTIONS),
    help="What a replica gives up when it needs room: the least recently used, or what reuse it learned is least.",
)
@click.option("--event-delay", default=0.0, show_default=True, type=Finite(0), help="Seconds to the router.")
@click.option("--event-loss", default=0.0, show_default=True, type=Finite(0, 1), help="Share of batches lost.")
@click.option("--incident", "incidents", multiple=True, callback=_incidents, help=f"{FORMS}. May be repeated.")
@click.option("--slo-ttft", default=SLO.ttft_s, show_default=True, type=POSITIVE, help="Seconds, for goodput.")
@click.option("--slo-tpot", default=SLO.tpot_s, show_default=True, type=POSITIVE, help="Seconds, for goodput.")
@click.option("--window", type=POSITIVE, help="Adds a timeline in windows of so many seconds to the JSON.")
@click.option("--seed", default=1, show_default=True, help="Fixes every draw: ties, and which events are lost.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
def simulate(
    trace: Path,
    until: float | None,
    rate_scale: float,
    token_scale: int,
    replicas: int,
    capacity_tokens: int,
    policies: tuple[str, ...],
    prefill_only: bool,
    utilisation: float | None,
    prefill_rate: float | None,
    block_size: int,
    max_batched_tokens: int,
    max_running: int,
    eviction: str,
    event_delay: float,
    event_loss: float,
    incidents: tuple[Incident, ...],
    slo_ttft: float,
    slo_tpot: float,
    window: float | None,
    seed: int,
    json_file: Path | None,
) -> None:
    """Policies compared in simulated time: the real router, scheduler and block pool, driven by a simulated clock."""
    if prefill_only and token_scale > 1:
        raise click.UsageError("--token-scale makes no difference with --prefill-only; leave one of them out")
    make_rooms({"--json": json_file}, {"--trace": trace})
    listed = _read(trace, until, rate_scale, token_scale, None if prefill_only else block_size)
    rate = _rate(listed, replicas, prefill_only, utilisation, prefill_rate)
    try:
        setup = FleetSetup(
            replicas=replicas,
            capacity_tokens=capacity_tokens,
            prefill_only=prefill_only,
            prefill_rate=rate,
            seed=seed,
            block_tokens=block_size,
            limits=SchedulerLimits(max_batched_tokens, max_running),
            timing=TimingModel(prefill_rate=rate),
            line=Line(event_delay, event_loss),
            incidents=incidents,
            eviction=eviction,
        )
    except ValueError as error:
        raise click.UsageError(f"--max-batched-tokens, --max-running: {error}") from None
    _check(setup, listed)
    if window is not None and listed[-1].at_s / window > MOST_WINDOWS:
        raise click.BadParameter(f"more than {MOST_WINDOWS:,} windows in {listed[-1].at_s:g} s.", param_hint="--window")
    slo = Slo(slo_ttft, slo_tpot)
    found: dict[str, PolicyFigures] = {}
    for name in dict.fromkeys(policies):
        found[name] = figures(_run(setup, listed, name), slo, window)
    ideal = ideals(setup, listed)
    report = SimulationReport(SCHEMA, _setup_facts(setup, trace, listed, slo, rate_scale), found, ideal)
    failure = write_file("--json", json_file, lambda path: path.write_bytes(to_json(report)))
    console = Output(PRINTED_WIDTH)
    console.print(table(found, ideal))
    if failure:
        raise click.ClickException(failure)
    console.check()
    if any(figure.errors for figure in found.values()):
        raise click.ClickException("some requests were not served; see the table's last column")


def ideals(setup: FleetSetup, listed: Sequence[Ask]) -> dict[str, float]:
    """The yardsticks for the fleet as it starts, by name."""
    blocks = max(1, setup.replicas * setup.capacity_tokens // listed[0].unit_tokens)
    pooled = {
        f"pooled_{name}": pooled_hit_rate(listed, blocks, make_eviction(name, blocks, setup.seed)) for name in EVICTIONS
    }
    return {"infinite": infinite_hit_rate(listed), **pooled}


def _read(trace: Path, until: float | None, rate_scale: float, token_scale: int, block_size: int | None) -> list[Ask]:
    if BLOCK_TOKENS % token_scale:
        raise click.BadParameter(f"{token_scale} does not divide {BLOCK_TOKENS}.", param_hint="--token-scale")
    try:
        listed = asks(read_trace(trace, float("inf") if until is None else until), block_size, rate_scale, token_scale)
    except TraceError as error:
        raise click.ClickException(f"--trace: {error}") from None
    if not listed:
        within = "" if until is None else f" in its first {until:g} s (--until)"
        raise click.ClickException(f"--trace: {trace} has no requests{within}")
    return listed


def _rate(
    listed: Sequence[Ask], replicas: int, prefill_only: bool, utilisation: float | None, prefill_rate: float | None
) -> float:
    """Prefill tokens a second of one replica."""
    if utilisation is not None and prefill_rate is not None:
        raise click.UsageError("--utilisation sets the prefill rate; leave out --prefill-rate, or it")
    if prefill_rate is not None:
        return prefill_rate
    if utilisation is None and not prefill_only:
        return TIMING.prefill_rate
    span = listed[-1].at_s
    if span <= 0:
        raise click.UsageError(
            "all requests of the trace come at once; give --prefill-rate, for --utilisation has no span to go by"
        )
    return sum(ask.prompt_tokens for ask in listed) / (span * replicas * (utilisation or 1.0))


def _check(setup: FleetSetup, listed: Sequence[Ask]) -> None:
    output = 0 if setup.prefill_only else 1
    longest = max(ask.prompt_tokens + output * (ask.output_tokens - 1) for ask in listed)
    block = setup.key_tokens
    if -(-longest // block) > setup.capacity_tokens // block:
        raise click.UsageError(
            f"--capacity-tokens {setup.capacity_tokens} is too small: the trace's longest request needs {longest} "
            f"tokens, in blocks of {block}"
        )
    try:
        check_incidents(setup.incidents, setup.replicas)
    except ValueError as error:
        raise click.UsageError(f"--incident: {error}") from None


def _run(setup: FleetSetup, listed: Sequence[Ask], name: str) -> Outcome:
    policy = make_policy(name, Random(f"{setup.seed} {name}"))
    return VirtualFleet(setup, policy, _progress(name, len(listed))).run(listed)


def _progress(name: str, total: int) -> Callable[[int], None]:
    """Says on stderr how far a run is, when it takes long."""
    said = time.monotonic()

    def report(index: int) -> None:
        nonlocal said
        if time.monotonic() - said >= PROGRESS_EVERY_S:
            said = time.monotonic()
            click.echo(f"{name}: {index} of {total} requests", err=True)

    return report


def _setup_facts(
    setup: FleetSetup, trace: Path, listed: Sequence[Ask], slo: Slo, rate_scale: float
) -> dict[str, str | int | float | bool | list[str] | None]:
    return {
        "trace": trace.name,
        "requests": len(listed),
        "span_s": listed[-1].at_s,
        "rate_scale": rate_scale,
        "token_scale": BLOCK_TOKENS // listed[0].unit_tokens,
        "replicas": setup.replicas,
        "capacity_tokens": setup.capacity_tokens,
        "prefill_only": setup.prefill_only,
        "prefill_rate": setup.prefill_rate,
        "block_tokens": setup.key_tokens,
        "max_batched_tokens": setup.limits.max_batched_tokens,
        "max_running": setup.limits.max_running,
        "eviction": setup.eviction,
        "event_delay_s": setup.line.delay_s,
        "event_loss": setup.line.loss,
        "incidents": [f"{each.at_s:g}:{each.action}:{each.replica}:{each.factor:g}" for each in setup.incidents],
        "slo_ttft_s": slo.ttft_s,
        "slo_tpot_s": slo.tpot_s,
        "seed": setup.seed,
    }
