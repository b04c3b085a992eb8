"""What other routers have booked on the replicas, merged into the same sums as this router's own bookings.

Owns the others' part of every load, and the protocol of it: which totals are due to be told, and which of those heard
still count. A policy reads one number; own = sum - others. Must never do I/O or read a clock: updates are handed in
and out, and so is the time.

Every router tells absolute totals of its own open bookings, by incarnation of a replica, under its own name and a
growing number. So an update that is lost, doubled or late does no lasting harm: an older number never replaces a newer
one, and a full refresh voids whatever it does not name. A sender that is not heard for its lease is counted out.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import Annotated

import msgspec

from scoring.ledger import ReplicaLoad

MAX_SENDERS = 1024
MAX_UNKNOWN = 4096  # totals kept of one sender once some of its replicas may not be known here
MAX_TOTALS = 1000  # in one update

Count = Annotated[int, msgspec.Meta(ge=0)]


class OpenTotals(msgspec.Struct, frozen=True, array_like=True):
    """One router's open bookings on one incarnation of a replica, in the units of ReplicaLoad. `epoch` is 0 for a
    replica that has none.
    """

    replica: str
    epoch: int
    queued_tokens: Count = 0
    context_tokens: Count = 0
    waiting: Count = 0
    decoding: Count = 0

    @property
    def open(self) -> bool:
        """Whether there is any."""
        return bool(self.waiting or self.decoding)


class Update(msgspec.Struct, frozen=True, array_like=True):
    """News of one sender. Whatever it said under a number below `void_before`, and not since, counts no more."""

    sender: str
    number: int
    totals: tuple[OpenTotals, ...] = ()
    void_before: int = 0


class _Said(msgspec.Struct, frozen=True):
    number: int
    totals: OpenTotals


class _Sender(msgspec.Struct):
    heard_at: float
    void_before: int = 0
    said: dict[tuple[str, int], _Said] = {}


class _Merged(msgspec.Struct):
    """A load that is known here, and how much of its sums is others'."""

    load: ReplicaLoad
    epoch: int
    queued_tokens: int = 0
    context_tokens: int = 0
    waiting: int = 0
    decoding: int = 0

    def shift(self, totals: OpenTotals, sign: int) -> None:
        """Count another router's totals in (1) or out (-1)."""
        for sums in (self, self.load):
            sums.queued_tokens += sign * totals.queued_tokens
            sums.context_tokens += sign * totals.context_tokens
            sums.waiting += sign * totals.waiting
            sums.decoding += sign * totals.decoding

    def own(self) -> OpenTotals:
        load = self.load
        return OpenTotals(
            load.name,
            self.epoch,
            load.queued_tokens - self.queued_tokens,
            load.context_tokens - self.context_tokens,
            load.waiting - self.waiting,
            load.decoding - self.decoding,
        )


class SharedLoads:
    """The loads that this router shares with others. `news` is called whenever `updates` has something to say.

    `sender` names this router to the others; it is new at each start of a process.
    """

    def __init__(self, sender: str = "") -> None:
        self.sender = sender or secrets.token_hex(8)
        self.news: Callable[[], None] = _nobody
        self._number = 0
        self._merged: dict[str, _Merged] = {}
        self._changed: set[str] = set()
        self._senders: dict[str, _Sender] = {}

    @property
    def peers(self) -> int:
        """How many other routers count."""
        return len(self._senders)

    def add(self, load: ReplicaLoad, epoch: int = 0) -> None:
        """Share this load from now on, instead of any other of its name; what is already known of it counts at once."""
        before = self._merged.get(load.name)
        if before is not None:
            self.forget(before.load)
        merged = self._merged[load.name] = _Merged(load, epoch)
        for sender in self._senders.values():
            said = sender.said.get((load.name, epoch))
            if said is not None:
                merged.shift(said.totals, 1)
                load.moved_at = max(load.moved_at, sender.heard_at)  # or their queue would seem to stand since time 0
        load.changed = self._on_change
        self._on_change(load)

    def forget(self, load: ReplicaLoad) -> None:
        """The replica left: only own bookings remain in its load. The others' are remembered while they are told."""
        merged = self._merged.get(load.name)
        if merged is None or merged.load is not load:
            return
        del self._merged[load.name]
        load.changed = None
        for sender in self._senders.values():
            said = sender.said.get((load.name, merged.epoch))
            if said is not None:
                merged.shift(said.totals, -1)

    def epoch(self, name: str) -> int | None:
        """Which incarnation of the replica is known here; None: no such replica."""
        merged = self._merged.get(name)
        return None if merged is None else merged.epoch

    def updates(self, *, full: bool = False) -> list[Update]:
        """What the others do not know yet; `full`: everything, which repairs whatever they missed."""
        if full:
            totals = [own for merged in self._merged.values() if (own := merged.own()).open]
        else:
            totals = [self._merged[name].own() for name in self._changed if name in self._merged]
        self._changed.clear()
        parts = [tuple(totals[at : at + MAX_TOTALS]) for at in range(0, len(totals), MAX_TOTALS)]
        if full and not parts:
            parts.append(())  # that there is nothing is news, too
        first = self._number + 1
        self._number += len(parts)
        return [
            Update(self.sender, number, part, first if full and number == self._number else 0)
            for number, part in enumerate(parts, first)
        ]

    def heard(self, update: Update, now: float) -> None:
        """Another router's update arrived, at `now` (seconds, never running backwards)."""
        sender = self._senders.get(update.sender)
        if sender is None:
            if update.sender == self.sender or len(self._senders) >= MAX_SENDERS:
                return
            sender = self._senders[update.sender] = _Sender(now)
        sender.heard_at = now
        for totals in update.totals:
            if update.number >= sender.void_before:
                self._replace(sender, _Said(update.number, totals), now)
        if update.void_before > sender.void_before:
            sender.void_before = update.void_before
            stale = [key for key, said in sender.said.items() if said.number < update.void_before]
            self._count_out(sender.said.pop(key) for key in stale)

    def end(self, sender: str) -> None:
        """That router is gone, and with it its bookings."""
        gone = self._senders.pop(sender, None)
        if gone is not None:
            self._count_out(gone.said.values())

    def expire(self, before: float) -> list[str]:
        """End every sender that was last heard before then; returns their names."""
        late = [name for name, sender in self._senders.items() if sender.heard_at < before]
        for name in late:
            self.end(name)
        return late

    def _on_change(self, load: ReplicaLoad) -> None:
        if load.name not in self._changed:  # on the hot path: one call outward for all changes until the next update
            self._changed.add(load.name)
            self.news()

    def _replace(self, sender: _Sender, said: _Said, now: float) -> None:
        totals = said.totals
        key = (totals.replica, totals.epoch)
        before = sender.said.get(key)
        merged = self._of(totals)
        if before is None and merged is None and len(sender.said) >= MAX_UNKNOWN:
            return
        if before is not None and before.number >= said.number:
            return
        sender.said[key] = said
        if merged is not None:
            queued = merged.load.queued_tokens
            merged.shift(totals, 1)
            if before is not None:
                merged.shift(before.totals, -1)
            if merged.load.queued_tokens < queued or not queued:
                merged.load.moved_at = now

    def _count_out(self, void: Iterable[_Said]) -> None:
        for said in void:
            merged = self._of(said.totals)
            if merged is not None:
                merged.shift(said.totals, -1)

    def _of(self, totals: OpenTotals) -> _Merged | None:
        """Where such totals count; None: that incarnation is not known here."""
        merged = self._merged.get(totals.replica)
        return merged if merged is not None and merged.epoch == totals.epoch else None


def _nobody() -> None: ...
