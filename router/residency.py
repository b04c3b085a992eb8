"""What the router believes to be cached where: reported truth, and predictions from its own routing.

Owns the joining of three sources into one overlap per replica:

- *index*: what replicas report (see radix/feed.py). The truth.
- *hints*: prompts just routed to a replica that reports. Short-lived; they bridge the time until its blocks are
  stored, so that a burst of siblings goes one way.
- *memory*: prompts routed to a replica that reports nothing. All that is known of it; bounded by LRU and by age.

Must never do I/O: whoever fetches a snapshot hands it in.
"""

from __future__ import annotations

from collections.abc import Sequence

from radix.events import EventBatch, Snapshot
from radix.feed import Outcome, ReplicaFeed
from radix.index import PrefixIndex
from radix.predicted import PredictedResidency
from router.fleet import Fleet, Replica, State

HINT_TTL_S = 30.0
HINT_BLOCKS = 1 << 16
SWEEP_BLOCKS = 4096


class Known:
    """One replica's places in the sources: a feed when it reports, an id among the predictions always."""

    __slots__ = ("feed", "predicted", "source")

    def __init__(self, source: PredictedResidency, feed: ReplicaFeed | None) -> None:
        self.source = source
        self.predicted = source.add_replica()
        self.feed = feed


class Residency:
    """Overlaps for routing, for every replica that is up."""

    def __init__(self, fleet: Fleet, *, memory_blocks: int, memory_ttl_s: float) -> None:
        self.index = PrefixIndex()
        self._hints = PredictedResidency(capacity_blocks=HINT_BLOCKS, ttl_s=HINT_TTL_S)
        self._memory = PredictedResidency(capacity_blocks=memory_blocks, ttl_s=memory_ttl_s)
        self._known: dict[Replica, Known] = {}
        fleet.subscribe(self._on_change)

    def overlaps(self, keys: Sequence[int], replicas: Sequence[Replica], now: float) -> list[int]:
        """Leading blocks of the prompt that each of `replicas` holds, parallel to them."""
        if not keys:
            return [0] * len(replicas)
        reported: dict[int, int] | None = None
        hinted: dict[int, int] | None = None
        remembered: dict[int, int] | None = None
        blocks = []
        for replica in replicas:
            known = self._known.get(replica)
            if known is None:
                blocks.append(0)
            elif known.feed is None:
                if remembered is None:
                    remembered = self._memory.match(keys, now)
                blocks.append(remembered.get(known.predicted, 0))
            else:
                if reported is None or hinted is None:
                    reported = self.index.match(keys)
                    hinted = self._hints.match(keys, now)
                blocks.append(max(reported.get(known.feed.rid, 0), hinted.get(known.predicted, 0)))
        return blocks

    def routed(self, replica: Replica, keys: Sequence[int], now: float) -> None:
        """The prompt goes to `replica`: it will hold these blocks soon."""
        known = self._known.get(replica)
        if known is not None and keys:
            known.source.record(known.predicted, keys, now)

    def apply(self, replica: Replica, batch: EventBatch) -> Outcome:
        """A batch from a replica that reports. GAP: the caller must hand in a snapshot."""
        return self._reporting(replica).apply(batch)

    def restore(self, replica: Replica, snapshot: Snapshot) -> Outcome:
        """The replica's whole block list. GAP: another is needed."""
        return self._reporting(replica).restore(snapshot)

    def reported_blocks(self, replica: Replica) -> int:
        known = self._known.get(replica)
        return self.index.blocks(known.feed.rid) if known and known.feed else 0

    def sweep(self, now: float) -> None:
        """A slice of the lazy work: expired predictions, and residency of replicas that are gone."""
        self._hints.expire(now)
        self._memory.expire(now)
        self.index.sweep(SWEEP_BLOCKS)

    def _reporting(self, replica: Replica) -> ReplicaFeed:
        known = self._known.get(replica)
        if known is None or known.feed is None:
            self._forget(replica)
            known = self._known[replica] = Known(self._hints, ReplicaFeed(self.index))
        assert known.feed is not None
        return known.feed

    def _on_change(self, replica: Replica) -> None:
        if replica.state is not State.UP:
            self._forget(replica)
        elif replica not in self._known:
            feed = ReplicaFeed(self.index) if replica.joined else None
            self._known[replica] = Known(self._hints if replica.joined else self._memory, feed)

    def _forget(self, replica: Replica) -> None:
        """A dead replica's blocks vanish at once."""
        known = self._known.pop(replica, None)
        if known is not None:
            known.source.retire_replica(known.predicted)
            if known.feed is not None:
                known.feed.close()
