"""Batches of one incarnation that arrived at the control port, until they are in Redis.

Owns the latest of them, by number. Must never wait for Redis: what does not fit falls out at the old end, and the
reader sees the gap.
"""

from __future__ import annotations

import asyncio

from radix.events import EventBatch

KEPT = 256
CROWDED = 32  # unread batches from which on a reporter had better wait: its later events then come in fewer batches


class Inbox:
    """What a publisher reads from (see radix/publisher.py). Batches may arrive in any order, twice, or not at all."""

    def __init__(self, keep: int = KEPT) -> None:
        self._keep = keep
        self._batches: dict[int, EventBatch] = {}
        self._due = 0
        self._news: list[asyncio.Event] = []
        self._room = asyncio.Event()
        self._room.set()

    def put(self, batch: EventBatch) -> None:
        self._batches[batch.seq] = batch
        if len(self._batches) > self._keep:
            del self._batches[min(self._batches)]
        self._look_for_room()
        for news in self._news:
            news.set()

    async def room(self) -> None:
        """Until the reader is not far behind."""
        await self._room.wait()

    def batch(self, seq: int) -> EventBatch | None:
        """Batch `seq`; the newest if that is not here but later ones are; None if there is nothing from `seq` on."""
        self._due = seq
        self._look_for_room()
        found = self._batches.get(seq)
        if found is None and self._batches:
            newest = max(self._batches)
            found = self._batches[newest] if newest > seq else None
        return found

    def subscribe(self) -> asyncio.Event:
        """An event that is set whenever a batch arrives; the reader clears it."""
        news = asyncio.Event()
        self._news.append(news)
        return news

    def unsubscribe(self, news: asyncio.Event) -> None:
        self._news.remove(news)

    def _look_for_room(self) -> None:
        if sum(seq >= self._due for seq in self._batches) < CROWDED:
            self._room.set()
        else:
            self._room.clear()
