"""The engine answers everybody, sleeps when idle, reports after each step, and survives a failing runner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from radix.events import decode_snapshot, encode
from replica.blocks import BlockPool
from replica.engine import Engine, EngineStopped, Generation, GenerationFailed
from replica.journal import Journal
from replica.metrics import Metrics
from replica.request import Finish, Request
from replica.runner import Runner
from replica.scheduler import NeverFits, Scheduler, SchedulerLimits, Step
from tests.replica.paged import PagedRunner, answer, request
from tests.replica.replay import Replay


class Gated(PagedRunner):
    """Runs a step when it is allowed to, and fails those it is told to fail."""

    def __init__(self, pool: BlockPool) -> None:
        super().__init__(pool)
        self.allowed = asyncio.Semaphore(0)
        self.entered = asyncio.Semaphore(0)
        self.fail = False
        self.steps = 0

    async def run(self, step: Step) -> list[int]:
        self.steps += 1
        self.entered.release()
        await self.allowed.acquire()
        if self.fail:
            raise OSError("out of memory")
        return self.compute(step)

    def open(self) -> None:
        """Every step may run from now on."""
        for _ in range(10_000):
            self.allowed.release()


@asynccontextmanager
async def running(
    runner_of: type[PagedRunner] = PagedRunner, max_running: int = 4
) -> AsyncIterator[tuple[Engine, Runner]]:
    pool = BlockPool(32, 4)
    scheduler = Scheduler(pool, SchedulerLimits(64, max_running))
    runner = runner_of(pool)
    engine = Engine(scheduler, runner, Journal("r", 1), Metrics(scheduler, "m"))
    engine.start()
    try:
        yield engine, runner
    finally:
        await engine.stop()


async def collect(generation: Generation) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in generation.requests]
    async for grown in generation:
        for index, output in grown:
            tokens[index].extend(output.tokens)
    return tokens


def prompts(numbers: Iterable[int]) -> list[Request]:
    return [request([number] * 9, 8) for number in numbers]


async def test_everybody_gets_their_own_answer() -> None:
    async with running() as (engine, _):
        generations = [engine.submit(prompts([number, number + 1])) for number in range(5)]
        for number, generation in enumerate(generations):
            assert await collect(generation) == [answer([number] * 9, 8), answer([number + 1] * 9, 8)]
        await engine.idle()
        assert engine.scheduler.idle


async def test_an_idle_engine_runs_no_steps_and_wakes_for_work() -> None:
    async with running(Gated) as (engine, runner):
        assert isinstance(runner, Gated)
        runner.open()
        for expected in (8, 16):
            await collect(engine.submit(prompts([1])))
            await engine.idle()
            assert runner.steps == expected


async def test_the_journal_follows_the_pool_step_by_step() -> None:
    async with running(Gated) as (engine, runner):
        assert isinstance(runner, Gated)
        replay, seq = Replay(), 0
        generation = engine.submit(prompts([1]))
        for _ in range(8):
            await runner.entered.acquire()
            assert engine.journal.batch(seq) is None, "nothing is stored before its step has run"
            runner.allowed.release()
            await anext(generation)
            while (batch := engine.journal.batch(seq)) is not None:
                replay.apply(batch.events)
                seq += 1
        snapshot = decode_snapshot(encode(engine.snapshot()))
        assert (snapshot.replica, snapshot.epoch, snapshot.seq) == ("r", 1, seq)
        assert replay.parents == Replay(snapshot.stored).parents
        assert len(replay.parents) == 4


async def test_a_cancelled_generation_ends_and_frees_its_blocks_but_not_its_cache() -> None:
    async with running(Gated) as (engine, runner):
        assert isinstance(runner, Gated)
        generation = engine.submit([request([1] * 9, 100)])
        runner.allowed.release()
        await anext(generation)
        engine.cancel(generation)
        runner.open()
        await engine.idle()
        assert [output.finish for grown in [await anext(generation)] for _, output in grown] == [Finish.ABORT]
        assert runner.steps <= 2
        assert engine.scheduler.pool.referenced == 0
        assert engine.scheduler.pool.resident == 2


async def test_a_failing_step_fails_its_requests_only() -> None:
    async with running(Gated, max_running=1) as (engine, runner):
        assert isinstance(runner, Gated)
        warm, doomed, waiting = (engine.submit(prompts([number])) for number in (0, 1, 2))
        for _ in range(8):
            runner.allowed.release()
        await collect(warm)
        for _ in range(8):
            await runner.entered.acquire()
        await runner.entered.acquire()
        runner.fail = True
        runner.allowed.release()
        with pytest.raises(GenerationFailed, match="out of memory"):
            await collect(doomed)
        assert not engine.healthy
        assert engine.scheduler.pool.resident == 0, "no KV of a failed device is trusted"
        runner.fail = False
        runner.open()
        assert await collect(waiting) == [answer([2] * 9, 8)]
        assert engine.healthy


async def test_too_large_a_request_is_refused_together_with_its_siblings() -> None:
    async with running() as (engine, _):
        with pytest.raises(NeverFits):
            engine.submit([request([1], 1), request([1], 1000)])
        assert engine.scheduler.idle


async def test_stopping_ends_every_request_and_refuses_new_ones() -> None:
    async with running(Gated) as (engine, _):
        generation = engine.submit(prompts([1]))
        await engine.stop()
        with pytest.raises(GenerationFailed, match="shutting down"):
            await collect(generation)
        with pytest.raises(EngineStopped):
            engine.submit(prompts([1]))
        assert not engine.healthy


async def test_an_engine_that_breaks_leaves_nobody_waiting() -> None:
    class Broken(Scheduler):
        def schedule(self) -> Step:
            if self.waiting:
                raise KeyError("lost")
            return super().schedule()

    scheduler = Broken(BlockPool(8, 4))
    engine = Engine(scheduler, PagedRunner(scheduler.pool), Journal("r", 1), Metrics(scheduler, "m"))
    engine.start()
    generation = engine.submit(prompts([1]))
    with pytest.raises(GenerationFailed, match="the engine failed: KeyError"):
        await collect(generation)
    with pytest.raises(EngineStopped):
        engine.submit(prompts([1]))
    await engine.stop()
