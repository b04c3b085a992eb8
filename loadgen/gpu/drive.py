"""Requests through the real engine, scheduler and block pool, with a record of every step.

Owns the driving and the records, and how the time of a step is read off them. Must never know what the runner computes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from statistics import median
from typing import Any

import uvloop

from replica.blocks import BlockPool, Namespace
from replica.engine import Engine
from replica.journal import Journal
from replica.metrics import Metrics
from replica.request import Finish, Limits, Request
from replica.runner import Runner, Sampled
from replica.sampling_params import SamplingParams
from replica.scheduler import Scheduler, SchedulerLimits, Step

GREEDY = SamplingParams(temperature=0.0)


@dataclass(slots=True)
class StepRecord:
    """One step: its requests, its tokens, whether all of them decode, and the contexts these then attend to, summed.

    `ended`: when its tokens were there, in seconds of time.perf_counter.
    """

    rows: int
    tokens: int
    decodes: bool
    context: int
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Enough:
    """When a drive may end: `steps` steps decoded `rows` requests each."""

    rows: int
    steps: int


class Recorder:
    """A runner that passes everything on to another and notes what it was asked. `enough_seen` is set by what ended."""

    def __init__(self, runner: Runner, enough: Enough | None) -> None:
        self._runner = runner
        self._enough = enough
        self._wanted = enough.steps if enough else 0
        self.steps: list[StepRecord] = []
        self.enough_seen = asyncio.Event()

    @property
    def lookahead(self) -> int:
        return self._runner.lookahead

    def run(self, step: Step) -> asyncio.Future[Sampled]:
        record = StepRecord(
            rows=len(step.slices),
            tokens=step.tokens,
            decodes=all(part.is_decode for part in step.slices),
            context=sum(part.start + part.count for part in step.slices),
        )
        self.steps.append(record)
        future = asyncio.ensure_future(self._runner.run(step))
        future.add_done_callback(lambda _: self._end(record))
        return future

    def _end(self, record: StepRecord) -> None:
        record.ended = time.perf_counter()
        if self._enough is not None and record.decodes and record.rows == self._enough.rows:
            self._wanted -= 1
            if self._wanted == 0:
                self.enough_seen.set()


@dataclass(frozen=True, slots=True)
class Pace:
    """Decode steps of one batch size, one right after the other: median seconds, mean contexts (summed), how many."""

    seconds: float
    context: float
    steps: int


@dataclass(frozen=True, slots=True)
class Drive:
    """What came of driving requests. `seconds`: from the first submission to the last token."""

    steps: Sequence[StepRecord] = field(repr=False)
    seconds: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    preemptions: int

    def decoding(self, rows: int) -> Pace:
        """Raises ValueError when no two such steps followed each other."""
        pairs = [
            (after.ended - before.ended, after.context)
            for before, after in pairwise(self.steps)
            if before.decodes and after.decodes and before.rows == after.rows == rows
        ]
        if not pairs:
            raise ValueError(f"no two steps decoded {rows} requests one after the other")
        return Pace(median(s for s, _ in pairs), sum(context for _, context in pairs) / len(pairs), len(pairs))

    def prefilling(self, tokens: int) -> float:
        """Median seconds of a step of `tokens` prompt tokens that followed another. Raises ValueError without any."""
        gaps = [after.ended - before.ended for before, after in pairwise(self.steps) if after.tokens == tokens]
        if not gaps:
            raise ValueError(f"no step of {tokens} tokens followed another")
        return median(gaps)


def prompts(count: int, lengths: Sequence[int], vocabulary: int, random: Random) -> list[list[int]]:
    """`count` random prompts; their lengths are taken from `lengths` in turn."""
    return [random.choices(range(vocabulary), k=lengths[index % len(lengths)]) for index in range(count)]


def request(prompt: Sequence[int], output: int) -> Request:
    """A greedy request for exactly `output` tokens."""
    return Request(prompt, Limits(output, ignore_eos=True), Namespace("bench"), sampling=GREEDY)


def drive(
    runner: Runner,
    pool: BlockPool,
    limits: SchedulerLimits,
    requests: Iterable[Request],
    enough: Enough | None = None,
) -> Drive:
    """Submits all requests at once, and answers them all or `enough` of them. Raises RuntimeError when the engine could
    not.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        return loop.run(_drive(runner, pool, limits, list(requests), enough))


async def _drive(
    runner: Runner, pool: BlockPool, limits: SchedulerLimits, requests: list[Request], enough: Enough | None
) -> Drive:
    scheduler = Scheduler(pool, limits)
    recorder = Recorder(runner, enough)
    engine = Engine(scheduler, recorder, Journal("bench", 0), Metrics(scheduler, "bench"))
    engine.start()
    try:
        started = time.perf_counter()
        generations = [engine.submit([one]) for one in requests]
        await _first(engine.idle(), recorder.enough_seen.wait())
        failure = _failure(engine, requests)
        for generation in generations:
            engine.cancel(generation)
        await engine.idle()
    finally:
        await engine.stop()
    if failure:
        raise RuntimeError(failure)
    if enough and not recorder.enough_seen.is_set():
        raise RuntimeError(f"the requests ended before {enough.steps} steps had decoded all {enough.rows} of them")
    return Drive(
        steps=recorder.steps,
        seconds=max(step.ended for step in recorder.steps) - started,
        prompt_tokens=sum(one.prompt_tokens for one in requests),
        output_tokens=sum(one.output_tokens for one in requests),
        cached_tokens=sum(one.cached or 0 for one in requests),
        preemptions=scheduler.preemptions,
    )


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    """Returns when one of them has; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _failure(engine: Engine, requests: Iterable[Request]) -> str:
    """Why a request ended before its length; empty when none did."""
    if all(one.finish in (None, Finish.LENGTH) for one in requests):
        return ""
    return engine.failure or "a request ended in an error; the log says why"
