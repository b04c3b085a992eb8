"""Policies that do not look at the prompt.

Owns `least_load`, `power_of_two`, `round_robin` and `random`. Must never do I/O, read a clock, or change a load.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from scoring.decision import Choice, Query
from scoring.ledger import ReplicaLoad
from scoring.ties import least

MAX_SETS = 1024


def open_requests(loads: Sequence[ReplicaLoad]) -> list[int]:
    """Of each replica, requests waiting or decoding."""
    return [load.running for load in loads]


class LeastLoad:
    """Fewest open requests."""

    name = "least_load"

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        return Choice(least(open_requests(loads), self._rng), "fewest open requests")


class PowerOfTwo:
    """Of two at random, the one with fewer open requests (Mitzenmacher, "The Power of Two Choices in Randomized Load
    Balancing", 2001). Two routers with equally stale views seldom pick the same.
    """

    name = "power_of_two"

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        if len(loads) == 1:
            return Choice(0, "the only one")
        one = self._rng.randrange(len(loads))
        other = self._rng.randrange(len(loads) - 1)
        other += other >= one
        # Equals: `one`, which is as likely to be either.
        return Choice(other if loads[other].running < loads[one].running else one, "fewer open requests of two")


class RoundRobin:
    """Each in turn."""

    name = "round_robin"

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._turns: dict[tuple[str, ...], int] = {}  # for each set of candidates, lest two sets skew each other

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        names = tuple(load.name for load in loads)
        if len(self._turns) > MAX_SETS:
            self._turns.clear()
        turn = self._turns[names] = self._turns.get(names, self._rng.randrange(len(loads))) + 1
        return Choice(turn % len(loads), "next in turn")


class UniformRandom:
    """Any, with equal chance."""

    name = "random"

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        return Choice(self._rng.randrange(len(loads)), "at random")
