"""What the router believes to be cached where: reported truth, and predictions from its own routing.

Owns the joining of three sources into one overlap per replica:

- *index*: what replicas report (see radix/feed.py). The truth.
- *hints*: exact prompts just routed to a replica that reports. Short-lived; they bridge the time until its blocks are
  stored, so that a burst of siblings goes one way.
- *memory*: prompts routed to a replica that reports nothing, or nothing that such keys could match (text). All that is
  known of it; bounded by LRU and by age.

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
    """One replica's places in the sources. `block_size` is that of its reports, 0 when it makes none."""

    __slots__ = ("block_size", "feed", "hinted", "remembered")

    def __init__(self, hinted: int, remembered: int, feed: ReplicaFeed | None, block_size: int) -> None:
        self.hinted = hinted
        self.remembered = remembered
        self.feed = feed
        self.block_size = block_size


class Residency:
    """Overlaps for routing, for every replica that is up.

    Reports can answer only for keys of their own kind: `exact` is the block size of a prompt whose keys are exact,
    else 0.
    """

    def __init__(self, fleet: Fleet, *, memory_blocks: int, memory_ttl_s: float) -> None:
        self.index = PrefixIndex()
        self._hints = PredictedResidency(capacity_blocks=HINT_BLOCKS, ttl_s=HINT_TTL_S)
        self._memory = PredictedResidency(capacity_blocks=memory_blocks, ttl_s=memory_ttl_s)
        self._known: dict[Replica, Known] = {}
        fleet.subscribe(self._on_change)

    def overlaps(self, keys: Sequence[int], replicas: Sequence[Replica], exact: int, now: float) -> list[int]:
        """Leading blocks of the prompt that each of `replicas` holds, parallel to them."""
        if not keys:
            return [0] * len(replicas)
        reported: dict[int, int] | None = None
        hinted: dict[int, int] = {}
        remembered: dict[int, int] | None = None
        blocks = []
        for replica in replicas:
            known = self._known.get(replica)
            if known is None:
                blocks.append(0)
            elif exact and known.block_size == exact and known.feed is not None:
                if reported is None:
                    reported, hinted = self.index.match(keys), self._hints.match(keys, now)
                blocks.append(max(reported.get(known.feed.rid, 0), hinted.get(known.hinted, 0)))
            else:
                if remembered is None:
                    remembered = self._memory.match(keys, now)
                blocks.append(remembered.get(known.remembered, 0))
        return blocks

    def routed(self, replica: Replica, keys: Sequence[int], exact: int, now: float) -> None:
        """The prompt goes to `replica`: it will hold these blocks soon."""
        known = self._known.get(replica)
        if known is not None and keys:
            source, rid = self._predicted(known, exact)
            source.record(rid, keys, now)

    def unplaced(self, replica: Replica, keys: Sequence[int], exact: int, kept: int) -> None:
        """The prompt did not leave its blocks there after all, but for the first `kept`, which were there before."""
        known = self._known.get(replica)
        if known is not None and kept < len(keys):
            source, rid = self._predicted(known, exact)
            source.forget(rid, keys, kept)

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

    def _predicted(self, known: Known, exact: int) -> tuple[PredictedResidency, int]:
        """The predictions that such a prompt belongs to, and the replica's id there."""
        if exact and known.block_size == exact:
            return self._hints, known.hinted
        return self._memory, known.remembered

    def _reporting(self, replica: Replica) -> ReplicaFeed:
        known = self._known.get(replica)
        if known is None or known.feed is None:
            raise ValueError(f"{replica} reports, but did not join or is not up")
        return known.feed

    def _on_change(self, replica: Replica) -> None:
        if replica.state is not State.UP:
            self._forget(replica)
        elif replica not in self._known:
            said = replica.registration if replica.joined else None
            self._known[replica] = Known(
                self._hints.add_replica(),
                self._memory.add_replica(),
                ReplicaFeed(self.index) if said else None,
                said.block_size if said else 0,
            )

    def _forget(self, replica: Replica) -> None:
        """A dead replica's blocks vanish at once."""
        known = self._known.pop(replica, None)
        if known is not None:
            self._hints.retire_replica(known.hinted)
            self._memory.retire_replica(known.remembered)
            if known.feed is not None:
                known.feed.close()
