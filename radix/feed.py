"""What one replica reports, fenced and applied to the index.

Owns the replica's id in the index, its epoch, and the number of the batch that is due. Must never apply a batch twice,
out of order, or from an older incarnation than the newest it has seen; must never let an event with nonsense in it
disturb more than itself.

After a gap the feed is *lost*: what was known stays in the index, batches are kept (`keep` of them at most), and a
snapshot makes all of it right again: those of the kept batches that follow it are applied after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

from radix.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch, Snapshot
from radix.index import PrefixIndex

NO_EPOCH = -1


class Outcome(Enum):
    """What became of a batch or a snapshot.

    APPLIED: the index has it. DUPLICATE: it had it already. STALE: it is from an older incarnation or, a snapshot, from
    before what is applied. GAP: something before it is missing and a snapshot is needed; ask for one, unless that is
    under way. Batches are answered with GAP until it is in. UNKNOWN (only the tree in Redis says it): the incarnation
    must register first.
    """

    APPLIED = auto()
    DUPLICATE = auto()
    GAP = auto()
    STALE = auto()
    UNKNOWN = auto()


class ReplicaFeed:
    """The reports of one replica, through all its incarnations.

    `rid` is its id in the index for the life of the feed. `malformed` counts events that were skipped.
    """

    def __init__(self, index: PrefixIndex, keep: int = 256) -> None:
        self.rid = index.add_replica()
        self.epoch = NO_EPOCH
        self.next_seq = 0
        self.lost = False
        self.malformed = 0
        self._index = index
        self._keep = keep
        self._kept: dict[int, EventBatch] = {}
        self._closed = False

    def apply(self, batch: EventBatch) -> Outcome:
        """Take one batch. A newer epoch ends what the older one held."""
        if self._closed or batch.epoch < self.epoch:
            return Outcome.STALE
        if batch.epoch > self.epoch:
            self._index.clear(self.rid)
            self._begin(batch.epoch, 0)
        if batch.seq < self.next_seq:
            return Outcome.DUPLICATE
        if batch.seq > self.next_seq:
            self._set_aside(batch)
            return Outcome.GAP
        self._take(batch.events)
        self.next_seq += 1
        self._catch_up()
        return Outcome.APPLIED

    def restore(self, snapshot: Snapshot) -> Outcome:
        """Make the residency what the snapshot says, then apply the kept batches that follow it.

        GAP: the snapshot is in, but one of the batches between it and the kept ones is missing: another is needed.
        """
        if self._closed or (snapshot.epoch, snapshot.seq) < (self.epoch, self.next_seq):
            return Outcome.STALE
        kept = self._kept if snapshot.epoch == self.epoch else {}
        fresh = self._index.add_replica()
        self._apply_to(fresh, snapshot.stored)
        self._index.take_over(self.rid, fresh)
        self._begin(snapshot.epoch, snapshot.seq)
        self._kept = {seq: batch for seq, batch in kept.items() if seq >= snapshot.seq}
        self._catch_up()
        return Outcome.GAP if self.lost else Outcome.APPLIED

    def close(self) -> None:
        """The replica is gone, and with it all it held. The feed takes nothing more."""
        if not self._closed:
            self._closed = True
            self._kept.clear()
            self._index.retire_replica(self.rid)

    def _begin(self, epoch: int, seq: int) -> None:
        self.epoch = epoch
        self.next_seq = seq
        self.lost = False
        self._kept = {}

    def _set_aside(self, batch: EventBatch) -> None:
        if len(self._kept) >= self._keep:
            self._kept.clear()  # a snapshot under way will be older than these; the next one will not
        self._kept[batch.seq] = batch
        self.lost = True

    def _catch_up(self) -> None:
        """Apply what was kept for after the gap, if it has closed."""
        while self._kept and self.next_seq in self._kept:
            self._take(self._kept.pop(self.next_seq).events)
            self.next_seq += 1
        self.lost = bool(self._kept)

    def _take(self, events: Iterable[Event]) -> None:
        self._apply_to(self.rid, events)

    def _apply_to(self, rid: int, events: Iterable[Event]) -> None:
        for event in events:
            try:
                self._apply_event(rid, event)
            except (ValueError, OverflowError):
                self.malformed += 1

    def _apply_event(self, rid: int, event: Event) -> None:
        match event:
            case BlockStored():
                self._index.store(rid, event.parent, event.keys)
            case BlockRemoved():
                self._index.remove(rid, event.keys)
            case AllBlocksCleared():
                self._index.clear(rid)
