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
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from scoring.backlog import wait_s
from scoring.learned import PRIOR, Learned


class FirstByte(NamedTuple):
    """What was known of a request when it was booked, and how long its first byte took. `work_tokens` are its uncached
    tokens and what was left of those queued before it, `decoding` the streams that decoded there then.
    """

    work_tokens: int
    decoding: int
    ttft_s: float
    at: float


class ReplicaLoad(msgspec.Struct):
    """One replica's open bookings, in sums.

    `queued_tokens`: uncached prompt tokens of requests without a first byte. `context_tokens`: prompt tokens of all
    open requests, what they hold of the KV cache at least. `capacity_tokens`: the KV cache's size, 0 when unknown.
    `moved_at`: when the queue last moved on, or began. `learned`: what the replica can do. `silent`: bookings whose
    first byte will not be seen, by the time when it is expected.
    `changed` hears of every step of a booking made here, once the sums are right; the open requests of other routers,
    which shared_loads.py adds to the same sums, are not told to it. `taught` hears of every first byte that says how
    long the prefill took.
    """

    name: str
    capacity_tokens: int = 0
    queued_tokens: int = 0
    context_tokens: int = 0
    waiting: int = 0
    decoding: int = 0
    served: int = 0
    changed: Callable[[ReplicaLoad], None] | None = None
    moved_at: float = 0.0
    learned: Learned = PRIOR
    taught: Callable[[ReplicaLoad, FirstByte], None] | None = None
    silent: deque[Booking] = msgspec.field(default_factory=deque)

    @property
    def running(self) -> int:
        """Open requests, waiting or decoding."""
        return self.waiting + self.decoding

    def wait_s(self, now: float) -> float:
        """Until what is queued now will have been computed, in expectation."""
        pace = self.learned.work_s(1, self.decoding)
        return wait_s(self.queued_tokens * pace, self.waiting, now - self.moved_at)

    def left_tokens(self, now: float) -> int:
        """Of what is queued, the tokens that are not computed yet, in expectation. It may take longer than they should,
        but is no more work than is queued.
        """
        left = self.wait_s(now) / self.learned.work_s(1, self.decoding)
        return min(int(left), self.queued_tokens)

    def book(self, prompt_tokens: int, uncached_tokens: int, now: float = 0.0, *, streamed: bool = True) -> Booking:
        """Count a request in, at the moment it is sent here."""
        work_tokens = uncached_tokens
        if self.queued_tokens:
            work_tokens += self.left_tokens(now)
        elif uncached_tokens:
            self.moved_at = now
        self.waiting += 1
        self.queued_tokens += uncached_tokens
        self.context_tokens += prompt_tokens
        booking = Booking(self, prompt_tokens, uncached_tokens, now, work_tokens, self.decoding)
        if not streamed:
            booking.silent_until = now + self.learned.ttft_s(work_tokens, self.decoding)
            self.silent.append(booking)
        if self.changed is not None:
            self.changed(self)
        return booking

    def settle(self, now: float) -> None:
        """Count on what must have been prefilled by now, unseen."""
        silent = self.silent
        while silent and (silent[0].silent_until <= now or silent[0].stage is not WAITING):
            booking = silent.popleft()
            booking.first_byte(max(booking.silent_until, self.moved_at))


class Stage(enum.IntEnum):
    """How far a booked request is."""

    WAITING = 0
    DECODING = 1
    RELEASED = 2


WAITING, DECODING, RELEASED = Stage  # an enum member costs an attribute look-up, several times a request


class Booking(msgspec.Struct):
    """One request's place in its replica's load. `silent_until` is 0 when its first byte will be seen."""

    load: ReplicaLoad
    prompt_tokens: int
    uncached_tokens: int
    booked_at: float = 0.0
    work_tokens: int = 0
    decoding: int = 0
    silent_until: float = 0.0
    stage: Stage = WAITING

    def first_byte(self, now: float = 0.0, *, teaches: bool = True, cached_tokens: int | None = None) -> None:
        """The prefill is over; the request decodes from here on. `teaches`: and has only just ended. `cached_tokens`:
        what the replica really found of the prompt, where it says so.
        """
        if self.stage is not WAITING:
            return
        self.stage = DECODING
        load = self.load
        load.waiting -= 1
        load.decoding += 1
        load.queued_tokens -= self.uncached_tokens
        if self.uncached_tokens:
            load.moved_at = now
            if teaches and load.taught is not None and not self.silent_until:
                work_tokens = self.work_tokens
                if cached_tokens is not None:
                    work_tokens += self.prompt_tokens - cached_tokens - self.uncached_tokens
                load.taught(load, FirstByte(work_tokens, self.decoding, now - self.booked_at, now))
        if load.changed is not None:
            load.changed(load)

    def release(self, now: float = 0.0) -> None:
        """The request is over, however it ended."""
        load = self.load
        if self.stage is WAITING:
            load.waiting -= 1
            load.queued_tokens -= self.uncached_tokens  # that is no progress: `moved_at` stays
        elif self.stage is DECODING:
            load.decoding -= 1
        else:
            return
        self.stage = RELEASED
        load.context_tokens -= self.prompt_tokens
        load.served += 1
        if load.changed is not None:
            load.changed(load)
