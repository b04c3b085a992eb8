"""Requests through the real engine, scheduler and block pool to a real model, in whichever way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import torch

from replica.blocks import BlockPool, Namespace
from replica.engine import Engine
from replica.journal import Journal
from replica.metrics import Metrics
from replica.model_runner import ModelRunner, RunnerOptions
from replica.models.decoder import Decoder
from replica.request import Finish, Limits, Request
from replica.sampling_params import SamplingParams
from replica.scheduler import Scheduler, SchedulerLimits

VOCABULARY = 3072
LONGEST = 256
RUNNING = 6
ENOUGH, SCARCE = 200, 20
"""Blocks: for all that run here, and for few of them."""
GREEDY = SamplingParams(temperature=0.0)
NAMESPACE = Namespace("m")


@dataclass(frozen=True)
class Way:
    """One way to serve the same requests."""

    cache: bool = True
    chunk: int = 512
    blocks: int = ENOUGH
    order: int = 0
    neighbour: bool = False
    lookahead: bool = False
    padded: bool = False
    block: int = 4


def options(way: Way, **changes: object) -> RunnerOptions:
    plain = RunnerOptions(
        max_running=RUNNING,
        max_batched_tokens=way.chunk,
        max_model_len=LONGEST,
        block_size=way.block,
        blocks=way.blocks,
        kv_dtype=torch.float32,
        overlap=way.lookahead,
        padded=way.padded,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # changes are the test's own


def scheduler_of(way: Way) -> Scheduler:
    return Scheduler(BlockPool(way.blocks, way.block, sharing=way.cache), SchedulerLimits(way.chunk, RUNNING))


def request(prompt: Sequence[int], output: int, sampling: SamplingParams = GREEDY) -> Request:
    return Request(prompt, Limits(output), NAMESPACE, sampling=sampling)


def words(count: int, seed: int) -> list[int]:
    return Random(seed).choices(range(3, VOCABULARY), k=count)


MIXED = [
    GREEDY,
    SamplingParams(0.8, seed=1),
    SamplingParams(1.2, top_p=0.8, seed=2, logprobs=2),
    SamplingParams(0.0, repetition_penalty=1.4, logprobs=0),
    SamplingParams(1.0, top_k=40, presence_penalty=0.8, frequency_penalty=0.5, repetition_penalty=1.1, seed=3),
    SamplingParams(1.0, min_p=0.05, seed=4),
    GREEDY,
]


def requests() -> list[Request]:
    """Some share their beginning; one has to wait until another ends. Greedy ones, and all kinds of others."""
    common = words(35, 0)
    prompts = [common + words(5 * n, n) for n in range(4)] + [words(3, 7), words(50, 8), common[:20]]
    return [request(prompt, 14, sampling) for prompt, sampling in zip(prompts, MIXED, strict=True)]


async def serve(runner: ModelRunner, scheduler: Scheduler, asked: Sequence[Request], *, neighbour: bool) -> None:
    """All at once, in the order given. A `neighbour` in their midst is cancelled after a while."""
    engine = Engine(scheduler, runner, Journal("r", 0), Metrics(scheduler, "m"))
    engine.start()
    try:
        engine.submit(asked[:2])
        doomed = engine.submit([request(words(40, 9), 40, SamplingParams(0.9, seed=5))]) if neighbour else None
        engine.submit(asked[2:])
        if doomed is not None:
            await anext(doomed)
            engine.cancel(doomed)
        await engine.idle()
    finally:
        await engine.stop()
        runner.close()
    scheduler.pool.check_integrity()
    assert scheduler.pool.referenced == 0
    assert engine.failure is None


def run(model: Decoder, asked: Sequence[Request], way: Way, **changes: object) -> Scheduler:
    scheduler = scheduler_of(way)
    runner = ModelRunner(model, options(way, **changes))
    asyncio.run(serve(runner, scheduler, asked, neighbour=way.neighbour))
    assert all(one.finish in (Finish.LENGTH, Finish.STOP) for one in asked)
    return scheduler
