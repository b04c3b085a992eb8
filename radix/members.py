"""What the tree in Redis says, as this process knows it: the members, and their residency in the index.

Owns the members, and which id each slot of the tree has in the index. Changes only as the log's entries say, in their
order. Must never do I/O or read a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from radix.events import Registration
from radix.index import PrefixIndex
from radix.redis_tree import RESTORE, Incarnation
from radix.tree_log import Change, Freed, Gathered, Joined, Left, Reported, Restored, Unknown, apply_events

GRACE_LEASES = 1.3
SHORTEST_GRACE_S = 5.0


def grace_s(lease_s: float) -> float:
    """In which whoever lives under such leases makes itself heard, once Redis is back."""
    return max(GRACE_LEASES * lease_s, SHORTEST_GRACE_S)


class Unexplained(Exception):
    """A change does not fit what is known: something before it was missed."""


class Member:
    """A replica that lives in the tree. `rid`, its id in the index, changes when it clears its cache or hands in a new
    block list. `slot` 0: no block list has come yet. `next_seq` is the batch that is due.
    """

    __slots__ = ("missing_until", "next_seq", "registration", "rid", "slot")

    def __init__(self, registration: Registration, slot: int, rid: int, next_seq: int) -> None:
        self.registration = registration
        self.slot = slot
        self.rid = rid
        self.next_seq = next_seq
        self.missing_until: float | None = None  # Redis does not know it, which may change until then

    @property
    def name(self) -> str:
        return self.registration.name

    @property
    def epoch(self) -> int:
        return self.registration.epoch


class Members:
    """By name, and a listener's ear for each that joined, registered anew, or left."""

    def __init__(self, index: PrefixIndex) -> None:
        self.index = index
        self.by_name: dict[str, Member] = {}
        self._rids: dict[int, int] = {}  # by slot; those of members, and those that gather a block list
        self._listeners: list[Callable[[Member], None]] = []

    def subscribe(self, listener: Callable[[Member], None]) -> None:
        self._listeners.append(listener)

    def apply(self, change: Change) -> int:
        """How many blocks the change named. Raises Unexplained, and ValueError or OverflowError for nonsense."""
        match change:
            case Reported():
                return self._report(change)
            case Gathered():
                return apply_events(self.index, self._rid(change.slot), change.events)
            case Joined():
                self._join(change.said)
            case Restored() if (member := self._known(change.name, change.epoch)) is not None:
                self._move(member, change.slot)
                member.next_seq = change.seq
            case Left() if (member := self._known(change.name, change.epoch)) is not None:
                self._remove(member)
            case Freed():
                self._release(change.slot)
            case Unknown():
                raise ValueError(f"a log entry of the kind {change.kind!r}, which this version does not know")
        return 0

    def replace(self, incarnations: Iterable[Incarnation], rids: Mapping[int, int], now: float) -> None:
        """All anew: the members, and the ids in the index under which the slots' blocks were loaded.

        A member that is missing is kept for the time of a lease; one whose block list has not come yet keeps what is
        known of the same incarnation.
        """
        before = self.by_name
        for slot in self._rids.keys() - {member.slot for member in before.values()}:
            self.index.retire_replica(self._rids[slot])
        self._rids = dict(rids)
        self.by_name = {}
        for found in incarnations:
            known = before.get(found.said.name)
            if known is None or known.epoch <= found.said.epoch:  # else Redis is back with an older memory
                before.pop(found.said.name, None)
                self.by_name[found.said.name] = self._adopt(found, known)
        for member in before.values():
            member.slot = 0
            if member.missing_until is None:
                member.missing_until = now + grace_s(member.registration.lease_s)
            self.by_name[member.name] = member
        for member in list(self.by_name.values()):
            self._notify(member)

    def put_off(self, seconds: float) -> None:
        """For so long nobody could be heard of: those who are missing get as much more time."""
        for member in self.by_name.values():
            if member.missing_until is not None:
                member.missing_until += seconds

    def drop_missing(self, now: float) -> None:
        """Let go of those that nobody has heard of for too long."""
        for member in list(self.by_name.values()):
            if member.missing_until is not None and member.missing_until <= now:
                self._remove(member)

    def _adopt(self, found: Incarnation, known: Member | None) -> Member:
        if known is not None and known.epoch != found.said.epoch:
            self.index.retire_replica(known.rid)
            known = None
        if known is None:
            rid = self._rid(found.slot) if found.slot else self.index.add_replica()
            return Member(found.said, found.slot, rid, found.next_seq)
        if found.slot:
            self.index.retire_replica(known.rid)
            known.rid = self._rid(found.slot)
        known.registration, known.slot, known.next_seq = found.said, found.slot, found.next_seq
        known.missing_until = None
        return known

    def _join(self, said: Registration) -> None:
        member = self.by_name.get(said.name)
        if member is not None and member.epoch > said.epoch:
            return
        if member is not None and member.epoch == said.epoch:
            member.registration = said
            member.missing_until = None
        else:
            if member is not None:
                self._retire(member)
            member = self.by_name[said.name] = Member(said, 0, self.index.add_replica(), RESTORE)
        self._notify(member)

    def _report(self, change: Reported) -> int:
        member = self._known(change.name, change.epoch)
        if member is None:
            return 0
        self._move(member, change.slot)
        member.next_seq = change.seq + 1
        return apply_events(self.index, member.rid, change.events)

    def _move(self, member: Member, slot: int) -> None:
        """What the slot holds is what the member holds."""
        if member.slot != slot:
            self._retire(member)
            member.slot, member.rid = slot, self._rid(slot)

    def _remove(self, member: Member) -> None:
        del self.by_name[member.name]
        self._retire(member)
        self._notify(member)

    def _retire(self, member: Member) -> None:
        """What the member held so far is void."""
        self._rids.pop(member.slot, None)
        self.index.retire_replica(member.rid)

    def _release(self, slot: int) -> None:
        rid = self._rids.pop(slot, None)
        if rid is not None:
            self.index.retire_replica(rid)

    def _rid(self, slot: int) -> int:
        rid = self._rids.get(slot)
        if rid is None:
            rid = self._rids[slot] = self.index.add_replica()
        return rid

    def _known(self, name: str, epoch: int) -> Member | None:
        """None for an incarnation older than the one that is known, as Redis may speak of after it lost its memory."""
        member = self.by_name.get(name)
        if member is not None and member.epoch > epoch:
            return None
        if member is None or member.epoch != epoch:
            raise Unexplained(f"the log speaks of incarnation {epoch} of {name!r}, which never joined")
        return member

    def _notify(self, member: Member) -> None:
        for listener in self._listeners:
            listener(member)
