"""The engine answers everybody, sleeps when idle, reports after each step, and survives a failing runner: with one step
under way, and with two.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from radix.events import decode_snapshot, encode
from replica.blocks import BlockPool, Namespace
from replica.engine import Engine, EngineStopped
from replica.generation import Generation, GenerationFailed
from replica.journal import Journal
from replica.metrics import Metrics
from replica.request import Finish, Limits, Request
from replica.runner import Sampled
from replica.sampling_params import SamplingParams, TokenLogprobs
from replica.scheduler import NeverFits, Scheduler, SchedulerLimits, Step
from tests.replica.paged import PagedRunner, answer, request
from tests.replica.replay import Replay


class Gated(PagedRunner):
    """Ends a step when it is allowed to, and fails those it is told to fail. Computes it when it is handed over."""

    def __init__(self, pool: BlockPool, lookahead: int = 0) -> None:
        super().__init__(pool, lookahead)
        self.allowed = asyncio.Semaphore(0)
        self.entered = asyncio.Semaphore(0)
        self.fail = False
        self.steps = 0
        self.most_under_way = 0
        self._results: list[asyncio.Future[Sampled]] = []

    def run(self, step: Step) -> asyncio.Future[Sampled]:
        self.steps += 1
        self.entered.release()
        self._results.append(asyncio.ensure_future(self._end(self.compute(step))))
        self.most_under_way = max(self.most_under_way, self.under_way)
        return self._results[-1]

    @property
    def under_way(self) -> int:
        return sum(not result.done() for result in self._results)

    async def _end(self, tokens: list[int]) -> Sampled:
        await self.allowed.acquire()
        if self.fail:
            raise OSError("out of memory")
        return Sampled(tokens)

    def open(self) -> None:
        """Every step may end from now on."""
        for _ in range(10_000):
            self.allowed.release()


@pytest.fixture(params=[0, 1])
def lookahead(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@asynccontextmanager
async def running(lookahead: int, max_running: int = 4) -> AsyncIterator[tuple[Engine, Gated]]:
    pool = BlockPool(32, 4)
    scheduler = Scheduler(pool, SchedulerLimits(64, max_running))
    runner = Gated(pool, lookahead)
    engine = Engine(scheduler, runner, Journal("r", 1), Metrics(scheduler, "m"))
    engine.start()
    try:
        yield engine, runner
    finally:
        await engine.stop()
        assert runner.under_way == 0


async def collect(generation: Generation) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in generation.requests]
    async for grown in generation:
        for index, output in grown:
            tokens[index].extend(output.tokens)
    return tokens


def prompts(numbers: Iterable[int]) -> list[Request]:
    return [request([number] * 9, 8) for number in numbers]


async def test_everybody_gets_their_own_answer(lookahead: int) -> None:
    async with running(lookahead) as (engine, runner):
        runner.open()
        generations = [engine.submit(prompts([number, number + 1])) for number in range(5)]
        for number, generation in enumerate(generations):
            assert await collect(generation) == [answer([number] * 9, 8), answer([number + 1] * 9, 8)]
        await engine.idle()
        assert engine.scheduler.idle
        engine.scheduler.pool.check_integrity()
        assert runner.most_under_way == 1 + lookahead


async def test_an_idle_engine_runs_no_steps_and_wakes_for_work(lookahead: int) -> None:
    async with running(lookahead) as (engine, runner):
        runner.open()
        for expected in (8, 16):
            await collect(engine.submit(prompts([1])))
            await engine.idle()
            assert runner.steps == expected


async def test_the_journal_follows_the_pool_step_by_step(lookahead: int) -> None:
    async with running(lookahead) as (engine, runner):
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


async def test_a_cancelled_generation_ends_and_frees_its_blocks_but_not_its_cache(lookahead: int) -> None:
    async with running(lookahead) as (engine, runner):
        generation = engine.submit([request([1] * 9, 100)])
        runner.allowed.release()
        await anext(generation)
        engine.cancel(generation)
        runner.open()
        await engine.idle()
        assert [output.finish for grown in [await anext(generation)] for _, output in grown] == [Finish.ABORT]
        assert runner.steps <= 2 + lookahead
        assert engine.scheduler.pool.referenced == 0
        assert engine.scheduler.pool.resident == 2


async def test_a_failing_step_fails_its_requests_only(lookahead: int) -> None:
    async with running(lookahead, max_running=1) as (engine, runner):
        warm, doomed, waiting = (engine.submit(prompts([number])) for number in (0, 1, 2))
        for _ in range(8):
            runner.allowed.release()
        await collect(warm)
        for _ in range(8 + 1 + lookahead):
            await runner.entered.acquire()
        runner.fail = True
        for _ in range(1 + lookahead):
            runner.allowed.release()
        with pytest.raises(GenerationFailed, match="out of memory"):
            await collect(doomed)
        assert not engine.healthy
        assert engine.scheduler.pool.resident == 0, "no KV of a failed device is trusted"
        runner.fail = False
        runner.open()
        assert await collect(waiting) == [answer([2] * 9, 8)]
        assert engine.healthy


async def test_an_engine_whose_step_failed_finds_out_by_itself_that_it_is_well_again() -> None:
    class FailingTwice(PagedRunner):
        steps = 0

        async def run(self, step: Step) -> Sampled:
            self.steps += 1
            if self.steps <= 2:
                raise MemoryError("out of memory")
            return Sampled(self.compute(step))

    scheduler = Scheduler(BlockPool(32, 4))
    engine = Engine(scheduler, FailingTwice(scheduler.pool), Journal("r", 1), Metrics(scheduler, "m"), retry_s=0.001)
    engine.start()
    with pytest.raises(GenerationFailed, match="out of memory"):
        await collect(engine.submit(prompts([1])))
    assert not engine.healthy
    async with asyncio.timeout(10):
        while not engine.healthy:  # noqa: ASYNC110 - there is nothing to wait for: nobody asks it for anything
            await asyncio.sleep(0.001)
    await engine.idle()
    assert scheduler.pool.referenced == 0
    await engine.stop()


async def test_blocks_are_not_forgotten_while_a_step_may_still_write_to_them() -> None:
    async with running(lookahead=1) as (engine, runner):
        doomed = engine.submit(prompts([1]))
        for _ in range(2):
            await runner.entered.acquire()
        runner.fail = True
        runner.allowed.release()
        failed = asyncio.create_task(collect(doomed))
        for _ in range(10):  # turns of the loop, in which a hasty engine would have failed it
            await asyncio.sleep(0)
        assert runner.under_way == 1
        assert not failed.done()
        assert engine.scheduler.pool.referenced > 0
        runner.allowed.release()
        with pytest.raises(GenerationFailed, match="out of memory"):
            await failed
        assert engine.scheduler.pool.referenced == 0


async def test_an_end_that_was_not_foreseen_leaves_nothing_under_way() -> None:
    expected = answer([1] * 9, 8)[:3]
    async with running(lookahead=1) as (engine, runner):
        runner.open()
        stopped = request([1] * 9, 8, stop_ids={expected[-1]})
        assert await collect(engine.submit([stopped])) == [answer([1] * 9, 8, stop_ids={expected[-1]})]
        await engine.idle()
        assert runner.under_way == 0
        assert engine.scheduler.pool.referenced == 0
        assert engine.scheduler.pool.resident == 2


async def test_a_step_that_cannot_even_begin_fails_after_those_before_it() -> None:
    class Refusing(Gated):
        def run(self, step: Step) -> asyncio.Future[Sampled]:
            if self.steps == 2:
                raise OSError("no room")
            return super().run(step)

    scheduler = Scheduler(BlockPool(32, 4))
    runner = Refusing(scheduler.pool, lookahead=1)
    runner.open()
    engine = Engine(scheduler, runner, Journal("r", 1), Metrics(scheduler, "m"))
    engine.start()
    one = request([1] * 9, 8)
    with pytest.raises(GenerationFailed, match="no room"):
        await collect(engine.submit([one]))
    assert one.output == answer([1] * 9, 8)[:2]
    await engine.stop()


async def test_a_runner_that_gives_up_a_step_has_failed_and_the_engine_goes_on(lookahead: int) -> None:
    class GivingUp(Gated):
        def run(self, step: Step) -> asyncio.Future[Sampled]:
            if self.steps:
                return super().run(step)
            self.steps += 1
            lost: asyncio.Future[Sampled] = asyncio.get_running_loop().create_future()
            lost.cancel()
            return lost

    scheduler = Scheduler(BlockPool(32, 4))
    runner = GivingUp(scheduler.pool, lookahead)
    runner.open()
    engine = Engine(scheduler, runner, Journal("r", 1), Metrics(scheduler, "m"))
    engine.start()
    with pytest.raises(GenerationFailed, match="gave the step up"):
        await collect(engine.submit(prompts([1])))
    assert await collect(engine.submit(prompts([2]))) == [answer([2] * 9, 8)]
    await engine.stop()


async def test_logprobs_come_with_their_tokens() -> None:
    class Likely(PagedRunner):
        async def run(self, step: Step) -> Sampled:
            tokens = self.compute(step)
            return Sampled(tokens, [TokenLogprobs(-float(token), ((token, -1.0),)) for token in tokens])

    scheduler = Scheduler(BlockPool(32, 4))
    engine = Engine(scheduler, Likely(scheduler.pool), Journal("r", 1), Metrics(scheduler, "m"))
    engine.start()
    wanting = Request([1], Limits(5), Namespace("m"), sampling=SamplingParams(logprobs=1))
    outputs = [output for index, output in [pair async for grown in engine.submit([wanting]) for pair in grown]]
    pairs = [pair for output in outputs for pair in zip(output.tokens, output.logprobs, strict=True)]
    assert len(pairs) == 5
    assert all(likely == (-float(token), ((token, -1.0),)) for token, likely in pairs)
    plain = engine.submit([request([1], 5)])
    assert [output.logprobs for grown in [await anext(plain)] for _, output in grown] == [()]
    await engine.stop()


async def test_too_large_a_request_is_refused_together_with_its_siblings() -> None:
    async with running(0) as (engine, _):
        with pytest.raises(NeverFits):
            engine.submit([request([1], 1), request([1], 1000)])
        assert engine.scheduler.idle


async def test_stopping_ends_every_request_and_refuses_new_ones(lookahead: int) -> None:
    async with running(lookahead) as (engine, runner):
        generation = engine.submit(prompts([1]))
        for _ in range(1 + lookahead):
            await runner.entered.acquire()
        await engine.stop()
        with pytest.raises(GenerationFailed, match="shutting down"):
            await collect(generation)
        with pytest.raises(EngineStopped):
            engine.submit(prompts([1]))
        assert not engine.healthy


async def test_an_engine_that_breaks_leaves_nobody_waiting_and_no_step_under_way() -> None:
    class Broken(Scheduler):
        def schedule(self) -> Step:
            if self.running:
                raise KeyError("lost")
            return super().schedule()

    scheduler = Broken(BlockPool(8, 4))
    runner = Gated(scheduler.pool, lookahead=1)
    engine = Engine(scheduler, runner, Journal("r", 1), Metrics(scheduler, "m"))
    engine.start()
    generation = engine.submit(prompts([1]))
    with pytest.raises(GenerationFailed, match="the engine failed: KeyError"):
        await collect(generation)
    with pytest.raises(EngineStopped):
        engine.submit(prompts([1]))
    await engine.idle()
    await engine.stop()
    assert (runner.steps, runner.under_way) == (1, 0)
