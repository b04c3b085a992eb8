"""What every replica is doing: the work booked on it and not yet done.

Owns the counts that the cost model reads. A booking moves once from waiting to decoding and once to released; a late or
repeated call changes nothing, so a request that fails, is cancelled and ends at once is counted out exactly once.
Must never do I/O or read a clock: the time is handed in (seconds; a little out of order does no harm).

The first byte of an answer that is not streamed comes with its last. Such a booking is taken to have been prefilled
when that was to be expected; from then on it counts as decoding, and nothing is learned from it. A request without
tokens to compute is open like any other, but no part of the queue: it neither moves that nor teaches.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from scoring.backlog import wait_s
from scoring.learned import PRIOR, Learned
from scoring.standing import Standing, standing_of


class FirstByte(NamedTuple):
    """What a request had before it when it was booked, and how long its first byte took. `work_tokens` are its uncached
    tokens and what was left of those queued before it, as far as is known now; `decoding` the streams that decoded
    there then.
    """

    work_tokens: int
    decoding: int
    ttft_s: float
    at: float


def _watched(slot: str) -> Any:
    """A sum that anybody may set. The ledger itself sets the slot behind it, and forgets the standing once."""

    def put(load: ReplicaLoad, value: object) -> None:
        setattr(load, slot, value)
        load.standing = None

    return property(attrgetter(slot), put)


class ReplicaLoad:
    """One replica's open bookings, in sums.

    `queued_tokens`: uncached prompt tokens of requests without a first byte. `context_tokens`: prompt tokens of all
    open requests, what they hold of the KV cache at least. `capacity_tokens`: the KV cache's size, 0 when unknown.
    `moved_at`: when the queue last moved on, or began. `learned`: what the replica can do. `silent`: bookings whose
    first byte will not be seen, by the time when it is expected. `surprise_tokens`: by how much all that was computed
    exceeds what was booked; a replica may have given up a prompt's blocks before it came to it.
    `standing`: what all these come to (standing.py), None when one has changed since; `stand` makes it anew.
    `changed` hears of every step of a booking made here, once the sums are right; the open requests of other routers,
    which shared_loads.py adds to the same sums, are not told to it. `taught` hears of every first byte that says how
    long the prefill took.
    """

    # Written some ten times a request and read at every decision: a slot is written in an eighth of the time of a
    # msgspec.Struct's field, and read in half of it.
    __slots__ = (
        *("_capacity_tokens", "_context_tokens", "_decoding", "_learned", "_moved_at", "_queued_tokens", "_waiting"),
        *("changed", "name", "served", "silent", "standing", "surprise_tokens", "taught"),
    )

    capacity_tokens: int = _watched("_capacity_tokens")
    queued_tokens: int = _watched("_queued_tokens")
    context_tokens: int = _watched("_context_tokens")
    waiting: int = _watched("_waiting")
    decoding: int = _watched("_decoding")
    moved_at: float = _watched("_moved_at")
    learned: Learned = _watched("_learned")

    def __init__(
        self,
        name: str,
        capacity_tokens: int = 0,
        queued_tokens: int = 0,
        context_tokens: int = 0,
        waiting: int = 0,
        decoding: int = 0,
        moved_at: float = 0.0,
        learned: Learned = PRIOR,
    ) -> None:
        self.name = name
        self._capacity_tokens = capacity_tokens
        self._queued_tokens = queued_tokens
        self._context_tokens = context_tokens
        self._waiting = waiting
        self._decoding = decoding
        self._moved_at = moved_at
        self._learned = learned
        self.served = 0
        self.surprise_tokens = 0
        self.silent: deque[Booking] = deque()
        self.standing: Standing | None = None
        self.changed: Callable[[ReplicaLoad], None] | None = None
        self.taught: Callable[[ReplicaLoad, FirstByte], None] | None = None

    def __repr__(self) -> str:
        return f"<ReplicaLoad {self.name}: {self._waiting} waiting, {self._decoding} decoding>"

    @property
    def running(self) -> int:
        """Open requests, waiting or decoding."""
        return self._waiting + self._decoding

    def counts(self) -> tuple[int, int, int]:
        """Uncached tokens queued, requests without a first byte, requests decoding."""
        return self._queued_tokens, self._waiting, self._decoding

    def stand(self) -> Standing:
        """What the sums come to now; kept until one of them changes."""
        capacity = self._capacity_tokens
        room = capacity - self._context_tokens if capacity else math.inf
        standing = self.standing = standing_of(
            self._learned, self._waiting, self._decoding, self._queued_tokens, room, self._moved_at
        )
        return standing

    def wait_s(self, now: float) -> float:
        """Until what is queued now will have been computed, in expectation."""
        return self._wait_s(self._learned.work_s(1, self._decoding), now)

    def left_tokens(self, now: float) -> int:
        """Of what is queued, the tokens that are not computed yet, in expectation. It may take longer than they should,
        but is no more work than is queued.
        """
        pace = self._learned.work_s(1, self._decoding)
        return min(int(self._wait_s(pace, now) / pace), self._queued_tokens)

    def _wait_s(self, pace: float, now: float) -> float:
        return wait_s(self._queued_tokens * pace, self._waiting, now - self._moved_at)

    def book(self, prompt_tokens: int, uncached_tokens: int, now: float = 0.0, *, streamed: bool = True) -> Booking:
        """Count a request in, at the moment it is sent here."""
        work_tokens = uncached_tokens
        if self._queued_tokens:
            work_tokens += self.left_tokens(now)
        elif uncached_tokens:
            self._moved_at = now
        self._waiting += 1
        self._queued_tokens += uncached_tokens
        self._context_tokens += prompt_tokens
        self.standing = None
        expected = work_tokens - self.surprise_tokens
        booking = Booking(self, prompt_tokens, uncached_tokens, now, expected, self._decoding)
        if not streamed:
            booking.silent_until = now + self._learned.ttft_s(work_tokens, self._decoding)
            self.silent.append(booking)
        if self.changed is not None:
            self.changed(self)
        return booking

    def settle(self, now: float) -> None:
        """Count on what must have been prefilled by now, unseen."""
        silent = self.silent
        while silent and (silent[0].silent_until <= now or silent[0].stage is not WAITING):
            booking = silent.popleft()
            booking.first_byte(max(booking.silent_until, self._moved_at))


class Stage(enum.IntEnum):
    """How far a booked request is."""

    WAITING = 0
    DECODING = 1
    RELEASED = 2


WAITING, DECODING, RELEASED = Stage  # an enum member costs an attribute look-up, several times a request


class Booking(msgspec.Struct):
    """One request's place in its replica's load. `silent_until` is 0 when its first byte will be seen.
    `expected_tokens`: the work until its first byte, less the surprises that there had been when it was booked.
    """

    load: ReplicaLoad
    prompt_tokens: int
    uncached_tokens: int
    booked_at: float = 0.0
    expected_tokens: int = 0
    decoding: int = 0
    silent_until: float = 0.0
    stage: Stage = WAITING

    def first_byte(self, now: float = 0.0, *, teaches: bool = True, cached_tokens: int | None = None) -> None:
        """The prefill is over; the request decodes from here on. `teaches`: and has only just ended. `cached_tokens`:
        what the replica really found of the prompt, where it says so, in tokens like those that were booked.
        """
        if self.stage is not WAITING:
            return
        self.stage = DECODING
        load = self.load
        load._waiting -= 1
        load._decoding += 1
        load._queued_tokens -= self.uncached_tokens
        load.standing = None
        if cached_tokens is not None and teaches and not self.silent_until:
            load.surprise_tokens += max(self.prompt_tokens - cached_tokens, 1) - self.uncached_tokens
        if self.uncached_tokens:
            load._moved_at = now
            if teaches and load.taught is not None and not self.silent_until:
                work_tokens = self.expected_tokens + load.surprise_tokens
                load.taught(load, FirstByte(work_tokens, self.decoding, now - self.booked_at, now))
        if load.changed is not None:
            load.changed(load)

    def release(self, now: float = 0.0) -> None:
        """The request is over, however it ended."""
        load = self.load
        if self.stage is WAITING:
            load._waiting -= 1
            load._queued_tokens -= self.uncached_tokens  # that is no progress: `moved_at` stays
        elif self.stage is DECODING:
            load._decoding -= 1
        else:
            return
        self.stage = RELEASED
        load._context_tokens -= self.prompt_tokens
        load.standing = None
        load.served += 1
        if load.changed is not None:
            load.changed(load)
