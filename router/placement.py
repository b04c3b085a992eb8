"""What an exchange needs of others: a place for each attempt, a way to find it, and the services of the gateway.

Owns the interfaces only, so that `exchange.py` knows neither policies nor prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from router.fleet import Fleet, Replica
from router.telemetry import Telemetry
from scoring.answers import AnswerTimes
from scoring.decision import Receipt
from scoring.ledger import Booking


class Placement(Protocol):
    """Where an attempt goes."""

    @property
    def replica(self) -> Replica: ...
    @property
    def booking(self) -> Booking: ...
    @property
    def receipt(self) -> Receipt | None: ...

    def unplaced(self) -> None:
        """The request did not leave its blocks there after all."""
        ...


class Route(Protocol):
    """How a request finds its replica."""

    repeatable: bool  # an attempt that brought no byte of an answer may be made again elsewhere

    def choose(self, tried: frozenset[Replica]) -> Placement:
        """Book the request on a replica that was not tried. Raises Refusal when there is none."""
        ...

    def has_other(self, tried: frozenset[Replica]) -> bool:
        """Whether a replica is left that was not tried."""
        ...


class Carrier(Protocol):
    """What exchanges need of the gateway. `clock` is the one of the ledger, and of all that is booked there."""

    fleet: Fleet
    telemetry: Telemetry
    answer_times: AnswerTimes
    attempts: int
    response_timeout_s: float
    clock: Callable[[], float]

    def suspect(self, replica: Replica) -> None:
        """A connection to the replica broke: look whether it lives."""
        ...
