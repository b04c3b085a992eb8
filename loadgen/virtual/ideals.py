"""What any routing could reach at most: hit rates of one cache without bounds, and of the fleet's memory as one pool.

Owns these yardsticks. In them, serving takes no time: requests come one after the other, each finds what all before it
left.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.virtual.clock import VirtualClock
from loadgen.virtual.prompts import NAMESPACE, Ask, packed_ids
from replica.blocks import BlockPool
from replica.eviction import Eviction


def infinite_hit_rate(asks: Sequence[Ask]) -> float:
    """Trace blocks that came before at the same place / all trace blocks."""
    seen: set[int] = set()
    found = total = 0
    for ask in asks:
        total += len(ask.blocks)
        for block in ask.blocks:
            if block not in seen:
                break
            found += 1
        seen.update(ask.blocks)
    return found / total if total else 0.0


def pooled_hit_rate(asks: Sequence[Ask], blocks: int, eviction: Eviction) -> float:
    """The same of one cache of so many trace blocks, whose eviction hears of time as the requests come.

    Prompts larger than the pool find and leave nothing.
    """
    clock = VirtualClock()
    pool = BlockPool(blocks, 1, eviction=eviction, clock=lambda: clock.now)
    found = total = 0
    for ask in asks:
        clock.now = ask.at_s
        count = len(ask.blocks)
        total += count
        packed = packed_ids(ask)
        table = pool.open(NAMESPACE, packed)
        if pool.grow(table, count):
            found += table.stored
            pool.store(table, packed, count)
        pool.release(table)
        pool.drain()
    return found / total if total else 0.0
