"""A replica's events on a bad line: gaps are repaired, with one snapshot at a time."""

from __future__ import annotations

from random import Random

import pytest

from loadgen.virtual.channel import EventChannel, Line
from loadgen.virtual.clock import VirtualClock
from radix.blocks import pack_tokens
from radix.feed import ReplicaFeed
from radix.index import PrefixIndex
from replica.blocks import BlockPool, Namespace


class Site:
    """A pool that stores a new block every tenth of a second for ten seconds, and a router's feed far away."""

    def __init__(self, line: Line, seed: int = 1) -> None:
        self.clock = VirtualClock()
        self.pool = BlockPool(20, 1)
        self.index = PrefixIndex()
        self.feed = ReplicaFeed(self.index)
        self.channel = EventChannel(self.clock, "one", self.pool, self.feed, line, Random(seed))
        for number in range(100):
            self.clock.at(number / 10, lambda number=number: self.compute(number))  # type: ignore[misc]  # a default

    def compute(self, number: int) -> None:
        packed = pack_tokens((number, 0))
        table = self.pool.open(Namespace("m"), packed)
        assert self.pool.grow(table, 1)
        self.pool.store(table, packed, 1)
        self.pool.release(table)
        self.channel.publish()

    def heard(self) -> list[bool]:
        """Of what the router believes to be there: whether it is."""
        return self.pool.holds(key for _, keys in self.index.held(self.feed.rid) for key in keys)


def test_events_arrive_late_and_in_order() -> None:
    site = Site(Line(delay_s=3.0))
    blocks: list[int] = []
    site.clock.at(5.05, lambda: blocks.append(site.index.blocks(site.feed.rid)))
    site.clock.run()
    assert blocks == [20]
    assert site.clock.now == pytest.approx(9.9 + 3.0)
    assert site.heard() == [True] * 20


@pytest.mark.parametrize("delay", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_after_losses_the_router_knows_again_what_is_there(delay: float, seed: int) -> None:
    site = Site(Line(delay, 0.3), seed)
    site.clock.run()
    assert site.channel.lost > 10
    # The last batches may have been lost, and nobody can know; the next one that arrives puts it right.
    while site.feed.next_seq != site.channel.published:
        site.compute(1000 + site.channel.published)
        site.clock.run()
    assert site.heard() == [True] * 20


def test_one_snapshot_is_asked_for_at_a_time() -> None:
    site = Site(Line(delay_s=2.0, loss=0.3))
    site.clock.run()
    assert 1 <= site.channel.repairs <= 3
