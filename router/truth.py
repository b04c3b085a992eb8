"""Reported truth: the index of what replicas say they hold, and where in it each of them stands.

Owns the question that the router asks of it (`Truth`), and the answer of a router by itself (`LocalTruth`): one feed
for each replica that joined and is up. Must never fetch anything: whoever has a batch or a block list hands it in.
"""

from __future__ import annotations

from typing import Protocol

from radix.events import EventBatch, Snapshot
from radix.feed import NO_EPOCH, Outcome, ReplicaFeed
from radix.index import PrefixIndex
from router.fleet import Fleet, Replica, State


class Reports(Protocol):
    """What one replica reports."""

    @property
    def rid(self) -> int:
        """Its id in the index now. Read it at each use: a resync may give it another."""
        ...

    @property
    def next_seq(self) -> int:
        """The batch that is due: everything before it is in the index."""
        ...


class Truth(Protocol):
    """The index, and who reports into it."""

    @property
    def index(self) -> PrefixIndex: ...

    def reports(self, replica: Replica) -> Reports | None:
        """None for a replica that makes no reports, or none that are known yet."""
        ...

    def whole(self, replica: Replica) -> bool:
        """Whether all that the replica reported is in the index, as far as is known."""
        ...


class LocalTruth:
    """The truth of a router by itself: replicas that joined report straight to it.

    Make it before whoever asks it when the fleet changes: the fleet tells its listeners in the order in which they
    came.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.index = PrefixIndex()
        self._feeds: dict[Replica, ReplicaFeed] = {}
        fleet.subscribe(self._on_change)

    def reports(self, replica: Replica) -> ReplicaFeed | None:
        return self._feeds.get(replica)

    def whole(self, replica: Replica) -> bool:
        feed = self._feeds.get(replica)
        return feed is not None and feed.epoch != NO_EPOCH and not feed.lost

    def apply(self, replica: Replica, batch: EventBatch) -> Outcome:
        """A batch from the replica. GAP: the caller must hand in a snapshot."""
        return self._feed(replica).apply(batch)

    def restore(self, replica: Replica, snapshot: Snapshot) -> Outcome:
        """The replica's whole block list. GAP: another is needed."""
        return self._feed(replica).restore(snapshot)

    def _feed(self, replica: Replica) -> ReplicaFeed:
        feed = self._feeds.get(replica)
        if feed is None:
            raise ValueError(f"{replica} reports, but did not join or is not up")
        return feed

    def _on_change(self, replica: Replica) -> None:
        if replica.state is not State.UP:
            feed = self._feeds.pop(replica, None)
            if feed is not None:
                feed.close()  # a dead replica's blocks vanish at once
        elif replica.joined and replica.registration is not None and replica not in self._feeds:
            self._feeds[replica] = ReplicaFeed(self.index)
