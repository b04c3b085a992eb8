"""A replica that only prefills, one request after the other: the set-up in which routing policies are often compared.

Owns its queue. A request takes uncached tokens / rate; its blocks become resident when its prefill ends, which is also
its end. Nothing decodes, nothing is batched. The block pool is the real one, with content as ids.
"""

from __future__ import annotations

from collections import deque

from loadgen.traces import BLOCK_TOKENS
from loadgen.virtual.clock import STEP, Due, VirtualClock
from loadgen.virtual.prompts import NAMESPACE, Job, packed_ids
from loadgen.virtual.replica import Listener
from replica.blocks import BlockPool, BlockTable
from replica.scheduler import NeverFits


class PrefillReplica:
    """`rate` is in prompt tokens a second. The pool's blocks are one unit each: `ids` in prompts.py."""

    preemptions = 0

    def __init__(self, name: str, clock: VirtualClock, pool: BlockPool, listener: Listener, rate: float) -> None:
        self.name = name
        self.pool = pool
        self.listener = listener
        self.computed_tokens = 0
        self.busy_s = 0.0
        self._clock = clock
        self._rate = rate
        self._slowness = 1.0
        self._queue: deque[Job] = deque()
        self._due: Due | None = None

    def take(self, job: Job) -> None:
        if len(job.ask.blocks) > self.pool.total:
            raise NeverFits(
                f"a prompt of {job.ask.prompt_tokens} tokens does not fit in {self.pool.total} blocks of {BLOCK_TOKENS}"
            )
        self._queue.append(job)
        if self._due is None:
            self._begin()

    def slow(self, slowness: float) -> None:
        """From the next request on."""
        self._slowness = slowness

    def stop(self) -> list[Job]:
        if self._due is not None:
            self._due.cancel()
        return list(self._queue)

    def _begin(self) -> None:
        job = self._queue[0]
        packed = packed_ids(job.ask)
        table = self.pool.open(NAMESPACE, packed)
        grown = self.pool.grow(table, len(job.ask.blocks))
        assert grown, "nothing else is in use"
        cached = min(table.stored * BLOCK_TOKENS, job.ask.prompt_tokens)
        tokens = max(1, job.ask.prompt_tokens - cached)  # the first output token comes from computing the prompt's last
        duration = tokens / self._rate * self._slowness

        def end() -> None:
            self.busy_s += duration
            self.computed_tokens += tokens
            self._end(job, cached, table, packed)

        self._due = self._clock.at(self._clock.now + duration, end, STEP)

    def _end(self, job: Job, cached: int, table: BlockTable, packed: bytes) -> None:
        self.pool.store(table, packed, len(job.ask.blocks))
        self.pool.release(table)
        self._queue.popleft()
        self._due = None
        self.listener.first_token(job, cached)
        self.listener.finished(job)
        self.listener.stepped()
        if self._queue:
            self._begin()
