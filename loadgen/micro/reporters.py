"""Replicas that have no engine: they only report blocks to a tree in Redis.

Owns what they report: conversations of a few turns, each turn a batch; with a full pool each batch also gives up as
many of the oldest blocks, from a conversation's end upwards, as a replica does. The first key of every batch tells when
it was sent, so that whoever applies it can say how old it is. Must never look at what becomes of it.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

from radix.events import KEY_BYTES, BlockRemoved, BlockStored, Event, EventBatch, Registration, Snapshot, pack_keys
from radix.feed import Outcome
from radix.redis_link import open_link
from radix.redis_tree import RedisTree

LEASE_S = 3600.0
TURNS = 8
REPORTER = "reporter "

# Times are spread over all 64 bits, as keys are: an odd factor, and the one that undoes it.
_SPREAD = 0x9E3779B97F4A7C15
_GATHER = pow(_SPREAD, -1, 1 << 64)
_MASK = (1 << 64) - 1


def key_of_now() -> int:
    """A key that tells this machine's monotonic clock."""
    return time.perf_counter_ns() * _SPREAD & _MASK


def ns_of_key(key: int) -> int:
    """What the clock showed when the key was made. Far from any time for another key, but for one in a billion."""
    return key * _GATHER & _MASK


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisTree]:
    link = open_link(url)
    try:
        yield RedisTree(link)
    finally:
        await link.close()


@asynccontextmanager
async def joined_reporters(url: str, count: int, blocks: int, capacity: int) -> AsyncIterator[list[Reporter]]:
    """Each with a connection of its own; they leave at the end."""
    async with AsyncExitStack() as stack:
        trees = [await stack.enter_async_context(opened(url)) for _ in range(count)]
        reporters = [Reporter(tree, f"{REPORTER}{number}", blocks, capacity) for number, tree in enumerate(trees)]
        for reporter in reporters:
            await reporter.join()
        yield reporters
        for reporter in reporters:
            await reporter.tree.leave(reporter.name, 1)


class Reporter:
    """One replica. `blocks` new ones in each batch; `capacity` blocks fill its pool, 0: a pool that never fills."""

    def __init__(self, tree: RedisTree, name: str, blocks: int, capacity: int) -> None:
        self.tree = tree
        self.name = name
        self._random = Random(name)
        self._blocks = blocks
        self.batches = 0  # applied
        self._full = capacity > 0
        self._pool: deque[list[bytes]] = deque()  # packed turns of conversations, the oldest first
        for _ in range(capacity // (blocks * TURNS)):
            self._pool.append([self._random.randbytes(KEY_BYTES * blocks) for _ in range(TURNS)])

    async def join(self) -> None:
        """Registers, and hands in what is in the pool."""
        await join(self.tree, self.name, [BlockStored(None, b"".join(turns)) for turns in self._pool])

    async def report(self) -> None:
        """One batch, applied. Raises RuntimeError when it is not."""
        events: list[Event] = [BlockRemoved(self._evicted())] if self._full else []
        await send(self.tree, self.name, self.batches, [*events, self._stored()])
        self.batches += 1

    def _stored(self) -> BlockStored:
        if not self._pool or len(self._pool[-1]) == TURNS:
            self._pool.append([])
        turns = self._pool[-1]
        parent = int.from_bytes(turns[-1][-KEY_BYTES:], "little") if turns else None
        turns.append(pack_keys((key_of_now(),)) + self._random.randbytes(KEY_BYTES * (self._blocks - 1)))
        return BlockStored(parent, turns[-1])

    def _evicted(self) -> bytes:
        oldest = self._pool[0]
        keys = array("Q", oldest.pop())
        if not oldest:
            self._pool.popleft()
        keys.reverse()
        return keys.tobytes()


async def join(tree: RedisTree, name: str, stored: Sequence[BlockStored] = ()) -> None:
    """Registers a replica that has these blocks; its next batch is 0."""
    await tree.register(Registration(name, f"http://{name}", 1, ("m",), 16, 1 << 20, lease_s=LEASE_S))
    _check(name, await tree.restore(Snapshot(name, 1, 0, tuple(stored))))


async def send(tree: RedisTree, name: str, seq: int, events: Sequence[Event]) -> None:
    """One batch. Raises RuntimeError when it is not applied."""
    applied = await tree.apply(EventBatch(name, 1, seq, tuple(events)))
    _check(name, applied.outcome)


def _check(name: str, outcome: Outcome) -> None:
    if outcome is not Outcome.APPLIED:
        raise RuntimeError(f"what {name} reported was not applied: {outcome.name}")
