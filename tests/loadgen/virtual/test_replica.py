"""A full replica in simulated time: leaping over steps gives what running them one by one gives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.traces import TraceRequest
from loadgen.virtual.clock import VirtualClock
from loadgen.virtual.prompts import Job, asks
from loadgen.virtual.replica import EngineReplica
from replica.blocks import BlockPool
from replica.scheduler import SchedulerLimits
from replica.simulated import TimingModel
from tests.loadgen.virtual.asks import in_order, request, requests

CAPACITY = 512 * 7


class Witness:
    """Writes down what a replica says, and when."""

    def __init__(self, clock: VirtualClock, pool: BlockPool) -> None:
        self.seen: list[tuple[object, ...]] = []
        self._clock = clock
        self._pool = pool

    def first_token(self, job: Job, cached_tokens: int) -> None:
        self.seen.append((self._clock.now, "first", job.ask.index, cached_tokens))

    def finished(self, job: Job) -> None:
        self.seen.append((self._clock.now, "finished", job.ask.index))

    def stepped(self) -> None:
        events = self._pool.drain()
        if events:
            self.seen.append((self._clock.now, *events))


class Story:
    """One replica's life: what it said, and what it was left with."""

    def __init__(
        self,
        asked: Sequence[TraceRequest],
        block: int,
        limits: SchedulerLimits,
        *,
        leaps: bool,
        slow_at: float = 99.0,
        stop_at: float = 99.0,
    ) -> None:
        clock = VirtualClock()
        pool = BlockPool(CAPACITY // block, block)
        witness = Witness(clock, pool)
        self.seen = witness.seen
        self.jobs = [Job(ask) for ask in asks(asked, block)]
        self.replica = EngineReplica("one", clock, pool, witness, limits, TimingModel(), leaps=leaps)
        for job in self.jobs:
            if job.ask.at_s < stop_at:
                clock.at(job.ask.at_s, lambda job=job: self.replica.take(job))  # type: ignore[misc]  # a default's type
        clock.at(slow_at, lambda: self.replica.slow(3.7))
        clock.at(stop_at, self.stop)
        clock.run()
        self.happened = clock.happened

    def stop(self) -> None:
        self.left = [(job.ask.index, job.produced) for job in self.replica.stop()]

    @property
    def told(self) -> tuple[object, ...]:
        return self.seen, self.left, self.replica.computed_tokens, self.replica.preemptions


limits = st.builds(SchedulerLimits, st.sampled_from([8, 64, 1024]), st.sampled_from([1, 2, 8]))
times = st.sampled_from([0.3, 0.9, 1.0, 1.7, 3.1, 99.0])


@settings(max_examples=150, deadline=None)
@given(requests, st.sampled_from([16, 64, 512]), limits, times, times)
def test_leaping_over_steps_gives_exactly_what_running_them_gives(
    asked: list[TraceRequest], block: int, limits: SchedulerLimits, slow_at: float, stop_at: float
) -> None:
    leapt, stepped = (
        Story(asked, block, limits, leaps=leaps, slow_at=slow_at, stop_at=stop_at) for leaps in (True, False)
    )
    assert leapt.told == stepped.told
    assert leapt.replica.busy_s == pytest.approx(stepped.replica.busy_s)


@pytest.mark.parametrize("block", [16, 512])
@pytest.mark.parametrize("budget", [8, 64])
def test_that_holds_where_requests_preempt_each_other_and_start_over(block: int, budget: int) -> None:
    asked = in_order([request(0.1 * number, 400 + 20 * number, 700, number % 4) for number in range(9)])
    leapt, stepped = (Story(asked, block, SchedulerLimits(budget, 8), leaps=leaps) for leaps in (True, False))
    assert stepped.replica.preemptions > 0
    assert leapt.told == stepped.told


def test_a_long_answer_is_leapt_over_in_a_few_steps() -> None:
    asked = [request(0, 100, 1500)]
    leapt, stepped = (Story(asked, 512, SchedulerLimits(), leaps=leaps) for leaps in (True, False))
    assert stepped.happened > 1500
    assert leapt.happened < 30
