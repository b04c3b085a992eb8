"""What happened to the blocks, in true order, on its way out of the replica.

Owns two things: the event log that the pool writes within a step, and the journal that numbers what the log held into
batches `(replica, epoch, seq)` without gaps and keeps the latest of them for the reporter. One journal serves every
reader, so a batch means the same to all of them. Must never wait for a reader: one that lags too far misses batches,
sees the gap in `seq` and asks for a snapshot.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from radix.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch, Snapshot, pack_keys

# A batch of this many events or block keys is closed even when nobody asks for it: it bounds one message to a router.
BATCH_WEIGHT = 1024


class EventLog:
    """The events of one step. Runs of blocks that follow each other become one event."""

    def __init__(self) -> None:
        self._stored: list[int] = []
        self._parent: int | None = None
        self._removed: list[int] = []
        self._events: list[Event] = []

    def stored(self, parent: int | None, key: int) -> None:
        self._end_removed()
        if self._stored and self._stored[-1] == parent:
            self._stored.append(key)
            return
        self._end_stored()
        self._parent = parent
        self._stored = [key]

    def removed(self, key: int) -> None:
        self._end_stored()
        self._removed.append(key)

    def cleared(self) -> None:
        self._end_stored()
        self._end_removed()
        self._events.append(AllBlocksCleared())

    def drain(self) -> tuple[Event, ...]:
        """Everything since the last drain, in true order."""
        self._end_stored()
        self._end_removed()
        events, self._events = tuple(self._events), []
        return events

    def _end_stored(self) -> None:
        if self._stored:
            self._events.append(BlockStored(self._parent, pack_keys(self._stored)))
            self._stored = []

    def _end_removed(self) -> None:
        if self._removed:
            self._events.append(BlockRemoved(pack_keys(self._removed)))
            self._removed = []


class Journal:
    """Batches numbered from 0, the latest `keep` at hand, and open events that the next reader turns into a batch.

    While every reader is busy, later steps' events join the open ones: so a slow network costs fewer, larger batches.
    """

    def __init__(self, replica: str, epoch: int, keep: int = 256) -> None:
        self.replica = replica
        self.epoch = epoch
        self._open: list[Event] = []
        self._weight = 0
        self._closed: deque[EventBatch] = deque(maxlen=keep)
        self._next_seq = 0
        self._news: list[asyncio.Event] = []

    @property
    def next_seq(self) -> int:
        """The number of the next batch to be closed."""
        return self._next_seq

    def append(self, events: Iterable[Event]) -> None:
        """Takes one step's events. Never blocks."""
        before = len(self._open)
        self._open.extend(events)
        if len(self._open) == before:
            return
        self._weight += sum(_weight(event) for event in self._open[before:])
        if self._weight >= BATCH_WEIGHT:
            self._close()
        for news in self._news:
            news.set()

    def snapshot(self, stored: tuple[BlockStored, ...]) -> Snapshot:
        """The residency `stored`, to which all events appended so far have led, and the number of the next batch."""
        self._close()
        return Snapshot(self.replica, self.epoch, self._next_seq, stored)

    def batch(self, seq: int) -> EventBatch | None:
        """Batch `seq`; the newest one if `seq` is no longer kept; None if there is nothing from `seq` on."""
        if seq == self._next_seq:
            self._close()
        if seq >= self._next_seq:
            return None
        oldest = self._closed[0].seq
        return self._closed[seq - oldest] if seq >= oldest else self._closed[-1]

    def subscribe(self) -> asyncio.Event:
        """An event that is set whenever something is appended; the reader clears it."""
        news = asyncio.Event()
        self._news.append(news)
        return news

    def unsubscribe(self, news: asyncio.Event) -> None:
        self._news.remove(news)

    def _close(self) -> bool:
        if not self._open:
            return False
        self._closed.append(EventBatch(self.replica, self.epoch, self._next_seq, tuple(self._open)))
        self._next_seq += 1
        self._open = []
        self._weight = 0
        return True


def _weight(event: Event) -> int:
    return 1 if isinstance(event, AllBlocksCleared) else 1 + len(event.packed) // 8
