"""What every replica is doing: the work booked on it and not yet done.

Owns the counts that the cost model reads. A booking moves once from waiting to decoding and once to released; a late or
repeated call changes nothing, so a request that fails, is cancelled and ends at once is counted out exactly once.
Must never do I/O or read a clock.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec


class ReplicaLoad(msgspec.Struct):
    """One replica's open bookings, in sums.

    `queued_tokens`: uncached prompt tokens of requests without a first byte. `context_tokens`: prompt tokens of all
    open requests, what they hold of the KV cache at least. `capacity_tokens`: the KV cache's size, 0 when unknown.
    `changed` hears of every step of a booking made here, once the sums are right; the open requests of other routers,
    which shared_loads.py adds to the same sums, are not told to it.
    """

    name: str
    capacity_tokens: int = 0
    queued_tokens: int = 0
    context_tokens: int = 0
    waiting: int = 0
    decoding: int = 0
    served: int = 0
    changed: Callable[[ReplicaLoad], None] | None = None

    @property
    def running(self) -> int:
        """Open requests, waiting or decoding."""
        return self.waiting + self.decoding

    def book(self, prompt_tokens: int, uncached_tokens: int) -> Booking:
        """Count a request in, at the moment it is sent here."""
        self.waiting += 1
        self.queued_tokens += uncached_tokens
        self.context_tokens += prompt_tokens
        if self.changed is not None:
            self.changed(self)
        return Booking(self, prompt_tokens, uncached_tokens)


class Stage(enum.IntEnum):
    """How far a booked request is."""

    WAITING = 0
    DECODING = 1
    RELEASED = 2


WAITING, DECODING, RELEASED = Stage  # an enum member costs an attribute look-up, several times a request


class Booking(msgspec.Struct):
    """One request's place in its replica's load."""

    load: ReplicaLoad
    prompt_tokens: int
    uncached_tokens: int
    stage: Stage = WAITING

    def first_byte(self) -> None:
        """The prefill is over; the request decodes from here on."""
        if self.stage is not WAITING:
            return
        self.stage = DECODING
        load = self.load
        load.waiting -= 1
        load.decoding += 1
        load.queued_tokens -= self.uncached_tokens
        if load.changed is not None:
            load.changed(load)

    def release(self) -> None:
        """The request is over, however it ended."""
        load = self.load
        if self.stage is WAITING:
            load.waiting -= 1
            load.queued_tokens -= self.uncached_tokens
        elif self.stage is DECODING:
            load.decoding -= 1
        else:
            return
        self.stage = RELEASED
        load.context_tokens -= self.prompt_tokens
        load.served += 1
        if load.changed is not None:
            load.changed(load)
