"""A runner with a paged memory: it writes each token where the block table says and reads the whole context back.

So an answer comes out right only if no block was shared wrongly, reused too early or left unwritten. Like a device, it
executes steps in the order in which it gets them, and with lookahead it gets a step before anyone has seen the tokens
of the one before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence

from xxhash import xxh3_64_intdigest

from radix.blocks import pack_tokens
from replica.blocks import BlockPool, Namespace
from replica.request import Limits, Request
from replica.runner import Sampled
from replica.scheduler import Scheduler, SchedulerLimits, Step
from tests.replica.replay import Replay

VOCABULARY = 5  # small, so that prompts and answers often share blocks


def oracle(tokens: Sequence[int], salt: str) -> int:
    """The next token of the imaginary model."""
    return xxh3_64_intdigest(pack_tokens(tokens) + salt.encode()) % VOCABULARY


class PagedRunner:
    def __init__(self, pool: BlockPool, lookahead: int = 0) -> None:
        self.lookahead = lookahead
        self._block_size = pool.block_size
        self._memory: dict[tuple[int, int], tuple[int, str]] = {}
        self._latest: dict[Request, int] = {}  # what the step before sampled
        self.computed = 0

    def compute(self, step: Step) -> list[int]:
        self.computed += step.tokens
        for part in step.slices:
            request = part.request
            salt = request.namespace.cache_salt
            for position in range(part.start, part.start + part.count):
                self._memory[self._slot(request, position)] = (self._token(request, position), salt)
        sampled = {}
        for part in step.slices:
            if part.samples:
                request = part.request
                seen = [self._memory[self._slot(request, at)] for at in range(part.start + part.count)]
                assert {salt for _, salt in seen} == {request.namespace.cache_salt}, "read another namespace's blocks"
                sampled[request] = oracle([token for token, _ in seen], request.namespace.cache_salt)
        self._latest = sampled
        return list(sampled.values())

    def run(self, step: Step) -> Awaitable[Sampled]:
        result: asyncio.Future[Sampled] = asyncio.get_running_loop().create_future()
        result.set_result(Sampled(self.compute(step)))
        return result

    def _token(self, request: Request, position: int) -> int:
        if position < len(request.tokens):
            return request.tokens[position]
        assert self.lookahead, "a token is not known, yet no step is under way"
        assert position == len(request.tokens), "more than one token is not known"
        return self._latest[request]

    def _slot(self, request: Request, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self._block_size)
        return request.table.blocks[block].index, offset


class Bench:
    """A scheduler, its pool and a paged runner, checked after every step."""

    def __init__(self, pool: BlockPool, limits: SchedulerLimits, lookahead: int = 0) -> None:
        self.pool = pool
        self.limits = limits
        self.scheduler = Scheduler(pool, limits)
        self.runner = PagedRunner(pool, lookahead)
        self.replay = Replay()
        self.steps = 0
        self.under_way: deque[tuple[Step, list[int]]] = deque()

    def step(self) -> list[Request]:
        """Schedules a step; and ends the oldest, once as many are under way as may be or there is nothing to schedule.

        A step is computed when it is handed over, and nobody sees its tokens before it is ended.
        """
        step = self.scheduler.schedule()
        assert step.tokens <= self.limits.max_batched_tokens
        assert len(self.scheduler.running) <= self.limits.max_running
        assert step.slices or self.under_way or self.scheduler.idle, "there is work, but nothing is scheduled"
        self.check()
        self.steps += 1
        if step.slices:
            self.under_way.append((step, self.runner.compute(step)))
        advanced = []
        if self.under_way and (not step.slices or len(self.under_way) > self.runner.lookahead):
            advanced = self.scheduler.postprocess(*self.under_way.popleft())
            self.check()
        return advanced

    @property
    def idle(self) -> bool:
        return self.scheduler.idle and not self.under_way

    def check(self) -> None:
        self.pool.check_integrity()
        for waiting in self.scheduler.waiting:
            held = (waiting.computed, waiting.scheduled, waiting.table.blocks)
            assert held == (0, 0, []), "a request holds blocks while it waits"
        for running in self.scheduler.running:
            assert running.computed <= running.scheduled <= len(running.table.blocks) * self.pool.block_size
            assert 0 <= running.pending <= len(self.under_way) + 1
        self.replay.apply(self.pool.drain())
        assert self.replay.parents == Replay(self.pool.snapshot()).parents
        assert len(self.replay.parents) == self.pool.resident

    def until_idle(self, most: int = 5000) -> None:
        while not self.idle:
            self.step()
            assert self.steps < most, "the scheduler does not come to an end"
        assert self.pool.referenced == 0


def request(prompt: Iterable[int], output: int, salt: str = "", stop_ids: Iterable[int] = ()) -> Request:
    return Request(list(prompt), Limits(output, stop_ids=frozenset(stop_ids)), Namespace("model", cache_salt=salt))


def answer(prompt: Sequence[int], output: int, salt: str = "", stop_ids: Iterable[int] = ()) -> list[int]:
    """What the request must answer, found without any cache."""
    tokens = list(prompt)
    for _ in range(output):
        tokens.append(oracle(tokens, salt))
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :]
