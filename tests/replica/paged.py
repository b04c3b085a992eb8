"""A runner with a paged memory: it writes each token where the block table says and reads the whole context back.

So an answer comes out right only if no block was shared wrongly, reused too early or left unwritten.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from xxhash import xxh3_64_intdigest

from radix.blocks import pack_tokens
from replica.blocks import BlockPool, Namespace
from replica.request import Limits, Request
from replica.scheduler import Scheduler, SchedulerLimits, Step
from tests.replica.replay import Replay

VOCABULARY = 5  # small, so that prompts and answers often share blocks


def oracle(tokens: Sequence[int], salt: str) -> int:
    """The next token of the imaginary model."""
    return xxh3_64_intdigest(pack_tokens(tokens) + salt.encode()) % VOCABULARY


class PagedRunner:
    def __init__(self, pool: BlockPool) -> None:
        self._block_size = pool.block_size
        self._memory: dict[tuple[int, int], tuple[int, str]] = {}

    def compute(self, step: Step) -> list[int]:
        sampled = []
        for part in step.slices:
            request = part.request
            salt = request.namespace.cache_salt
            for position in range(part.start, part.start + part.count):
                self._memory[self._slot(request, position)] = (request.tokens[position], salt)
        for part in step.slices:
            if part.samples:
                request = part.request
                seen = [self._memory[self._slot(request, at)] for at in range(part.start + part.count)]
                assert {salt for _, salt in seen} == {request.namespace.cache_salt}, "read another namespace's blocks"
                sampled.append(oracle([token for token, _ in seen], request.namespace.cache_salt))
        return sampled

    async def run(self, step: Step) -> list[int]:
        return self.compute(step)

    def _slot(self, request: Request, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self._block_size)
        return request.table.blocks[block].index, offset


class Bench:
    """A scheduler, its pool and a paged runner, checked after every step."""

    def __init__(self, pool: BlockPool, limits: SchedulerLimits) -> None:
        self.pool = pool
        self.limits = limits
        self.scheduler = Scheduler(pool, limits)
        self.runner = PagedRunner(pool)
        self.replay = Replay()
        self.steps = 0

    def step(self) -> list[Request]:
        step = self.scheduler.schedule()
        assert step.tokens <= self.limits.max_batched_tokens
        assert len(self.scheduler.running) <= self.limits.max_running
        assert step.slices or self.scheduler.idle, "there is work, but nothing is scheduled"
        self.pool.check_integrity()
        advanced = self.scheduler.postprocess(step, self.runner.compute(step))
        self.check()
        self.steps += 1
        return advanced

    def check(self) -> None:
        self.pool.check_integrity()
        for waiting in self.scheduler.waiting:
            assert (waiting.computed, waiting.table.blocks) == (0, []), "a request holds blocks while it waits"
        self.replay.apply(self.pool.drain())
        assert self.replay.parents == Replay(self.pool.snapshot()).parents
        assert len(self.replay.parents) == self.pool.resident

    def until_idle(self, most: int = 5000) -> None:
        while not self.scheduler.idle:
            self.step()
            assert self.steps < most, "the scheduler does not come to an end"
        assert self.pool.referenced == 0


def request(prompt: Iterable[int], output: int, salt: str = "") -> Request:
    return Request(list(prompt), Limits(output), Namespace("model", cache_salt=salt))


def answer(prompt: Sequence[int], output: int, salt: str = "") -> list[int]:
    """What the request must answer, found without any cache."""
    tokens = list(prompt)
    for _ in range(output):
        tokens.append(oracle(tokens, salt))
    return tokens[len(prompt) :]
