"""The way of a replica's events to the router, in simulated time: late, if you like, and with losses.

Owns the numbering of one replica's batches, and how a gap is repaired: as between real processes, the router notices at
the next batch that it hears, and asks for a snapshot. Must never deliver out of order.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from loadgen.virtual.clock import VirtualClock
from radix.events import EventBatch, Snapshot
from radix.feed import Outcome, ReplicaFeed
from replica.blocks import BlockPool


@dataclass(frozen=True, slots=True)
class Line:
    """How long a message takes (seconds, one way), and the share of event batches that never arrive."""

    delay_s: float = 0.0
    loss: float = 0.0


class EventChannel:
    """From `pool` to `feed`. `published` counts batches, `lost` those that never arrive, `repairs` snapshots."""

    def __init__(
        self, clock: VirtualClock, name: str, pool: BlockPool, feed: ReplicaFeed, line: Line, rng: Random
    ) -> None:
        self.published = 0
        self.lost = 0
        self.repairs = 0
        self._clock = clock
        self._name = name
        self._pool = pool
        self._feed = feed
        self._line = line
        self._rng = rng
        self._asking = False

    def publish(self) -> None:
        """Sends what happened to the blocks since the last time."""
        events = self._pool.drain()
        if not events:
            return
        batch = EventBatch(self._name, 0, self.published, events)
        self.published += 1
        if self._line.loss and self._rng.random() < self._line.loss:
            self.lost += 1
        elif self._line.delay_s:
            self._clock.at(self._clock.now + self._line.delay_s, lambda: self._hear(batch))
        else:
            self._hear(batch)

    def _hear(self, batch: EventBatch) -> None:
        if self._feed.apply(batch) is Outcome.GAP:
            self._ask()

    def _ask(self) -> None:
        if not self._asking:
            self._asking = True
            self._clock.at(self._clock.now + self._line.delay_s, self._answer)

    def _answer(self) -> None:
        self.publish()
        snapshot = Snapshot(self._name, 0, self.published, self._pool.snapshot())
        self.repairs += 1
        self._clock.at(self._clock.now + self._line.delay_s, lambda: self._restore(snapshot))

    def _restore(self, snapshot: Snapshot) -> None:
        self._asking = False
        if self._feed.restore(snapshot) is Outcome.GAP:
            self._ask()
