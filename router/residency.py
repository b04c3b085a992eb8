"""What the router believes to be cached where: reported truth, and predictions from its own routing.

Owns the joining of three sources into one overlap per replica:

- *truth*: what replicas report (see `truth.py`). Where it is believed, it says what is there.
- *hints*: exact prompts just routed to a replica that reports. Short-lived; they bridge the time until its blocks are
  stored, so that a burst of siblings goes one way. A reported eviction ends them: it is newer, and true.
- *memory*: prompts routed to a replica that reports nothing, or nothing that such keys could match (text), or whose
  reports are not believed. All that is known of it; bounded by LRU and by age.

Owns also whose reports are believed. Must never do I/O: whoever fetches a snapshot hands it to the truth.
"""

from __future__ import annotations

from collections.abc import Sequence

from radix.events import BlockStored, Snapshot, pack_keys
from radix.index import PrefixIndex
from radix.predicted import PredictedResidency
from router.fleet import Fleet, Replica, State
from router.truth import Reports, Truth

HINT_TTL_S = 30.0
HINT_BLOCKS = 1 << 16
SWEEP_BLOCKS = 4096


class Known:
    """One replica's places in the sources. `block_size` is that of its reports, 0 when none are believed."""

    __slots__ = ("block_size", "hinted", "remembered", "reports")

    def __init__(self, hinted: int, remembered: int) -> None:
        self.hinted = hinted
        self.remembered = remembered
        self.reports: Reports | None = None
        self.block_size = 0


class Residency:
    """Overlaps for routing, for every replica that is up.

    Reports can answer only for keys of their own kind: `exact` is the block size of a prompt whose keys are exact,
    else 0. A `private` one believes no reports at all, only what it routed itself.
    """

    def __init__(
        self, fleet: Fleet, truth: Truth, *, memory_blocks: int, memory_ttl_s: float, private: bool = False
    ) -> None:
        self.index = truth.index
        self._truth = truth
        self._private = private
        self._hints = PredictedResidency(capacity_blocks=HINT_BLOCKS, ttl_s=HINT_TTL_S)
        self._memory = PredictedResidency(capacity_blocks=memory_blocks, ttl_s=memory_ttl_s)
        self._known: dict[Replica, Known] = {}
        self._demoted: dict[str, tuple[int, str]] = {}  # by name: the epoch that is not believed, and why
        fleet.subscribe(self._on_change)
        self.index.on_removed = self._on_removed

    # On every request.

    def overlaps(self, keys: Sequence[int], replicas: Sequence[Replica], exact: int, now: float) -> list[int]:
        """Leading blocks of the prompt that each of `replicas` holds, parallel to them."""
        if not keys:
            return [0] * len(replicas)
        reported: dict[int, int] | None = None
        hinted: dict[int, int] = {}
        remembered: dict[int, int] | None = None
        known_of = self._known.get
        blocks = []
        for replica in replicas:
            held = 0
            known = known_of(replica)
            if known is None:
                pass
            elif exact and known.block_size == exact and known.reports is not None:
                if reported is None:
                    reported, hinted = self.index.match(keys), self._hints.match(keys, now)
                if reported:
                    held = reported.get(known.reports.rid, 0)
                if hinted and (hint := hinted.get(known.hinted, 0)) > held:
                    held = hint
            else:
                if remembered is None:
                    remembered = self._memory.match(keys, now)
                if remembered:  # of a new prompt nobody holds anything
                    held = remembered.get(known.remembered, 0)
            blocks.append(held)
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

    # Whose reports are believed.

    def demote(self, replica: Replica, reason: str) -> None:
        """The replica's reports proved wrong: until it joins as a new incarnation, it is known by predictions alone.

        Raises ValueError for a replica that never joined.
        """
        if not replica.joined or replica.registration is None:
            raise ValueError(f"{replica} makes no reports that could be distrusted")
        self._demoted[replica.name] = (replica.registration.epoch, reason)
        self._on_change(replica)

    def trusted(self, replica: Replica) -> bool:
        """Whether the replica makes reports, and they are believed."""
        return self.standing(replica) == "trusted"

    def standing(self, replica: Replica) -> str:
        """Of its reports: `trusted`, `demoted: REASON`, `ignored` by a private router, or `none`."""
        demoted = self._demotion(replica)
        if demoted is not None:
            return f"demoted: {demoted}"
        if self._truth.reports(replica) is None:
            return "none"
        return "ignored" if self._private else "trusted"

    def believed(self, replica: Replica) -> tuple[PrefixIndex, int] | None:
        """The index and the replica's id in it now, to be read at once.

        None while its reports are not believed, or known to be incomplete.
        """
        believed = self.trusted(replica) and self._truth.whole(replica)
        reports = self._truth.reports(replica) if believed else None
        return None if reports is None else (self.index, reports.rid)

    # What is reported, believed or not.

    def reported_blocks(self, replica: Replica) -> int:
        reports = self._truth.reports(replica)
        return 0 if reports is None else self.index.blocks(reports.rid)

    def reported(self, replica: Replica) -> Snapshot | None:
        """All that the index has of the replica, as its own block list would be; None when it makes no reports."""
        reports, said = self._truth.reports(replica), replica.registration
        if reports is None or said is None:
            return None
        stored = tuple(BlockStored(parent, pack_keys(keys)) for parent, keys in self.index.held(reports.rid))
        return Snapshot(replica.name, said.epoch, reports.next_seq, stored)

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

    def _on_removed(self, rid: int, keys: Sequence[int] | None) -> None:
        """A replica reports that it holds these no more; None: nothing at all."""
        for known in self._known.values():
            if known.reports is not None and known.reports.rid == rid:
                if keys is None:
                    self._hints.clear(known.hinted)
                else:
                    self._hints.evicted(known.hinted, keys)
                return

    def _demotion(self, replica: Replica) -> str | None:
        """Why this incarnation's reports are not believed."""
        demoted, said = self._demoted.get(replica.name), replica.registration
        return demoted[1] if demoted is not None and said is not None and demoted[0] == said.epoch else None

    def _on_change(self, replica: Replica) -> None:
        if replica.state is not State.UP:
            self._forget(replica)
            return
        known = self._known.get(replica)
        if known is None:
            known = self._known[replica] = Known(self._hints.add_replica(), self._memory.add_replica())
        said = replica.registration
        known.reports = self._truth.reports(replica)
        known.block_size = said.block_size if said is not None and self.trusted(replica) else 0
        if replica.joined and self._demotion(replica) is None:
            self._demoted.pop(replica.name, None)  # that was an older incarnation

    def _forget(self, replica: Replica) -> None:
        known = self._known.pop(replica, None)
        if known is not None:
            self._hints.retire_replica(known.hinted)
            self._memory.retire_replica(known.remembered)
