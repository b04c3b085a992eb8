"""What is asked of the routers: the demo's readers, or a stretch of a trace; and of which replicas.

Owns how each becomes a plan for every round, of a seed of its own, and the words about it. Must never start anything;
what cannot be asked is a `click.BadParameter` that names the flag.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from loadgen.demo.measuring import DRAIN_S
from loadgen.demo.readers import chats, readers
from loadgen.fleet import FleetParameters
from loadgen.plans.catalogue import make_plan
from loadgen.plans.plan import Plan
from loadgen.plans.prompts import Prompts
from loadgen.traces import TraceError, TraceFacts, TraceRequest, facts, read_trace

TRACE_DRAIN_S = 60.0


class Workload(NamedTuple):
    """What is asked, in short, in words and in figures; of which fleet; each round's plan, and what it says.
    `drain_s` is how long answers may take after the last request."""

    name: str
    words: str
    facts: dict[str, Any]
    fleet: FleetParameters
    plans: tuple[Plan, ...]
    prompts: Callable[[Plan], Prompts]
    drain_s: float


def demo_readers(seeds: Sequence[int], duration_s: float) -> Workload:
    """On replicas as the demo's. Raises BadParameter when there would be no reader in so short a time."""
    fleet = FleetParameters()
    try:
        plans = tuple(readers(seed, duration_s) for seed in seeds)
    except ValueError as error:
        raise click.BadParameter(f"{str(error).partition(': ')[2]}.", param_hint="--duration") from None
    words = (
        f"the demo's readers of a library, {duration_s:g} s; {fleet.replicas} replicas with KV room for "
        f"{fleet.kv_tokens:,} tokens each."
    )
    return Workload("demo", words, plans[0].parameters, fleet, plans, chats, DRAIN_S)


def stretch_of_trace(
    file: Path, minutes: float, size: FleetParameters, max_output: int, seeds: Sequence[int]
) -> Workload:
    """The trace's first minutes as prompts of token ids, `size.speedup` times as fast; answers go on to their length.

    The replicas' context is as long as the trace needs. Raises BadParameter for a file that is no trace, or a replica
    without room for its longest request.
    """
    requests = _read(file, minutes)
    longest = max(request.prompt_tokens + min(max(request.output_tokens, 1), max_output) for request in requests)
    if longest > size.kv_tokens:
        raise click.BadParameter(
            f"the longest request has {longest} tokens; give at least that.", param_hint="--kv-tokens"
        )
    settings = {
        "file": str(file),
        "until_s": minutes * 60,
        "rate_scale": size.speedup,
        "most_output_tokens": max_output,
    }
    said = facts(requests)
    load = said.prompt_tokens / max(said.duration_s, 1.0) / size.replicas / size.prefill_rate
    return Workload(
        "trace",
        _words(said, size, max_output, load),
        {**msgspec.to_builtins(said), "max_output": max_output, "prefill_load_without_cache": load},
        msgspec.structs.replace(size, max_model_len=longest),
        tuple(make_plan("trace", seed=seed, settings=settings) for seed in seeds),
        lambda plan: Prompts(plan, "tokens", "planned"),
        TRACE_DRAIN_S,
    )


def _read(file: Path, minutes: float) -> list[TraceRequest]:
    try:
        requests = list(read_trace(file, minutes * 60))
    except TraceError as error:
        raise click.BadParameter(str(error), param_hint="--trace") from None
    if not requests:
        raise click.BadParameter(f"{file} has no requests.", param_hint="--trace")
    return requests


def _words(said: TraceFacts, size: FleetParameters, max_output: int, load: float) -> str:
    return (
        f"{said.requests:,} requests of {said.duration_s:,.0f} s, {said.prompt_tokens / said.requests:,.0f} prompt "
        f"tokens each, answers of {max_output} tokens at most, all x{size.speedup:g} as fast; {size.replicas} replicas "
        f"with KV room for {size.kv_tokens:,} tokens each, which prefill would keep {load:.0%} busy if there were no "
        f"cache. A cache of all of it would hit {1 - said.distinct_blocks / said.blocks:.1%} of the blocks."
    )
