"""However reports are lost, doubled or reordered, a snapshot makes the index equal to the replica's own account."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radix.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch, Snapshot, pack_keys
from radix.feed import Outcome, ReplicaFeed
from radix.index import PrefixIndex
from tests.radix.oracle import keys_of


def stored(*tokens: int, start: int = 0) -> BlockStored:
    keys = keys_of(tokens)
    return BlockStored(keys[start - 1] if start else None, pack_keys(keys[start:]))


def removed(*tokens: int, blocks: int = 1) -> BlockRemoved:
    """The last `blocks` blocks of the prompt."""
    return BlockRemoved(pack_keys(keys_of(tokens)[: -blocks - 1 : -1]))


def batch(seq: int, *events: Event, epoch: int = 1) -> EventBatch:
    return EventBatch("r", epoch, seq, events)


def snapshot(seq: int, *events: BlockStored, epoch: int = 1) -> Snapshot:
    return Snapshot("r", epoch, seq, events)


@pytest.fixture
def index() -> PrefixIndex:
    return PrefixIndex()


@pytest.fixture
def feed(index: PrefixIndex) -> ReplicaFeed:
    return ReplicaFeed(index)


def overlap(index: PrefixIndex, feed: ReplicaFeed, *tokens: int) -> int:
    return index.match(keys_of(tokens)).get(feed.rid, 0)


def test_batches_in_order_are_applied_once(index: PrefixIndex, feed: ReplicaFeed) -> None:
    assert feed.apply(batch(0, stored(1, 2))) is Outcome.APPLIED
    assert feed.apply(batch(1, stored(1, 2, 3, start=2), removed(1, 2, 3))) is Outcome.APPLIED
    assert feed.apply(batch(0, stored(9))) is Outcome.DUPLICATE
    assert overlap(index, feed, 1, 2, 3) == 2
    assert overlap(index, feed, 9) == 0
    assert (feed.epoch, feed.next_seq) == (1, 2)


def test_a_gap_applies_nothing_until_a_snapshot_and_then_what_was_kept(index: PrefixIndex, feed: ReplicaFeed) -> None:
    feed.apply(batch(0, stored(1)))
    assert feed.apply(batch(2, stored(1, 2, 3, start=2))) is Outcome.GAP
    assert feed.apply(batch(3, stored(1, 2, 3, 4, start=3))) is Outcome.GAP
    assert overlap(index, feed, 1, 2, 3, 4) == 1
    assert feed.restore(snapshot(3, stored(1, 2, 3), stored(5))) is Outcome.APPLIED
    assert overlap(index, feed, 1, 2, 3, 4) == 4
    assert overlap(index, feed, 5) == 1
    assert feed.next_seq == 4
    assert feed.apply(batch(4, AllBlocksCleared())) is Outcome.APPLIED
    assert index.blocks(feed.rid) == 0


def test_a_gap_that_closes_by_itself_needs_no_snapshot(index: PrefixIndex, feed: ReplicaFeed) -> None:
    assert feed.apply(batch(1, stored(1, 2, start=1))) is Outcome.GAP
    assert feed.apply(batch(0, stored(1))) is Outcome.APPLIED
    assert feed.next_seq == 2
    assert not feed.lost
    assert overlap(index, feed, 1, 2) == 2


def test_a_snapshot_from_before_what_is_applied_is_ignored(index: PrefixIndex, feed: ReplicaFeed) -> None:
    feed.apply(batch(0, stored(1)))
    feed.apply(batch(1, stored(2)))
    assert feed.restore(snapshot(1, stored(7))) is Outcome.STALE
    assert feed.restore(snapshot(5, stored(7), epoch=0)) is Outcome.STALE
    assert overlap(index, feed, 2) == 1
    assert overlap(index, feed, 7) == 0


def test_a_newer_epoch_ends_the_older_one_at_once(index: PrefixIndex, feed: ReplicaFeed) -> None:
    feed.apply(batch(0, stored(1)))
    rid = feed.rid
    assert feed.apply(batch(0, stored(2), epoch=2)) is Outcome.APPLIED
    assert feed.apply(batch(1, stored(1), epoch=1)) is Outcome.STALE
    assert overlap(index, feed, 1) == 0
    assert overlap(index, feed, 2) == 1
    assert feed.apply(batch(4, stored(3), epoch=3)) is Outcome.GAP
    assert index.blocks(feed.rid) == 0
    assert feed.restore(snapshot(4, epoch=3)) is Outcome.APPLIED
    assert overlap(index, feed, 3) == 1
    assert feed.rid == rid


def test_too_many_batches_during_a_resync_need_another(index: PrefixIndex) -> None:
    feed = ReplicaFeed(index, keep=3)
    for seq in range(1, 6):
        assert feed.apply(batch(seq, stored(seq))) is Outcome.GAP
    assert feed.restore(snapshot(2, stored(1))) is Outcome.GAP
    assert feed.lost
    assert feed.apply(batch(6, stored(6))) is Outcome.GAP
    assert feed.restore(snapshot(5, stored(1), stored(2), stored(3), stored(4))) is Outcome.APPLIED
    assert all(overlap(index, feed, token) == 1 for token in (1, 2, 3, 4, 5, 6))


def test_nonsense_disturbs_nothing_but_itself(index: PrefixIndex, feed: ReplicaFeed) -> None:
    nonsense = (BlockStored(None, bytes(9)), BlockStored(-5, pack_keys([1])), BlockRemoved(bytes(3)))
    assert feed.apply(batch(0, *nonsense, stored(1))) is Outcome.APPLIED
    assert feed.malformed == 3
    assert overlap(index, feed, 1) == 1
    assert feed.restore(snapshot(1, BlockStored(None, bytes(1)), stored(2))) is Outcome.APPLIED
    assert overlap(index, feed, 2) == 1
    index.check_integrity()


def test_a_closed_feed_is_gone_and_stays_gone(index: PrefixIndex, feed: ReplicaFeed) -> None:
    feed.apply(batch(0, stored(1)))
    feed.close()
    feed.close()
    assert index.match(keys_of([1])) == {}
    heir = ReplicaFeed(index)
    while index.sweep(10):
        pass
    assert feed.apply(batch(1, stored(2))) is Outcome.STALE
    assert feed.restore(snapshot(9, stored(2))) is Outcome.STALE
    assert index.blocks(heir.rid) == len(index) == 0


class Sender:
    """A replica's own account of its blocks."""

    def __init__(self, seed: random.Random) -> None:
        self.seed = seed
        self.epoch = 0
        self.restart()

    def restart(self) -> None:
        self.epoch += 1
        self.seq = 0
        self.resident: dict[int, int | None] = {}

    def step(self) -> EventBatch:
        events: list[Event] = []
        for _ in range(self.seed.randrange(3)):
            keys = keys_of([self.seed.randrange(2) for _ in range(self.seed.randrange(1, 7))])
            if self.seed.random() < 0.6:
                events.append(BlockStored(None, pack_keys(keys)))
                self.resident.update(zip(keys, [None, *keys[:-1]], strict=True))
            elif self.seed.random() < 0.9:
                events.append(BlockRemoved(pack_keys(keys[:-3:-1])))
                for key in keys[:-3:-1]:
                    self.resident.pop(key, None)
            else:
                events.append(AllBlocksCleared())
                self.resident.clear()
        self.seq += 1
        return EventBatch("r", self.epoch, self.seq - 1, tuple(events))

    def snapshot(self) -> Snapshot:
        stored = tuple(BlockStored(parent, pack_keys([key])) for key, parent in self.resident.items())
        return Snapshot("r", self.epoch, self.seq, stored)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_is_lost_doubled_or_late_the_index_ends_up_right(number: int) -> None:
    seed = random.Random(number)
    index, sender = PrefixIndex(), Sender(seed)
    feed = ReplicaFeed(index, keep=4)
    under_way: list[EventBatch] = []
    snapshots: list[Snapshot] = []
    for _ in range(60):
        if seed.random() < 0.03:
            sender.restart()
        sent = sender.step()
        under_way += [sent] * seed.choice([0, 1, 1, 1, 1, 2])
        if len(under_way) > 1 and seed.random() < 0.3:
            seed.shuffle(under_way)
        while under_way and seed.random() < 0.7:
            if feed.apply(under_way.pop(0)) is Outcome.GAP and not snapshots:
                snapshots.append(sender.snapshot())
        if snapshots and seed.random() < 0.5:
            feed.restore(snapshots.pop())
        index.sweep(5)
        index.check_integrity()
    for late in under_way:
        feed.apply(late)
    if (feed.epoch, feed.next_seq) != (sender.epoch, sender.seq) or feed.lost:
        assert feed.restore(sender.snapshot()) is Outcome.APPLIED
    held = {key for _, keys in index.held(feed.rid) for key in keys}
    assert held == set(sender.resident)
    assert (feed.epoch, feed.next_seq) == (sender.epoch, sender.seq)
