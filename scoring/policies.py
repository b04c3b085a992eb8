"""The policies: given what each candidate holds of the prompt and how busy it is, which one gets the request.

Owns the choices and their names. A policy is a small object with `choose`; those that remember something between
requests (round robin's turn) keep it in themselves. Ties break at random among equals, so that several routers with
equal views do not herd. Must never do I/O, read a clock, or change a load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from xxhash import xxh3_64_intdigest

from scoring.cost import Rates, costs_s
from scoring.decision import Choice, Query
from scoring.ledger import ReplicaLoad

MAX_SETS = 1024


class Policy(Protocol):
    """`choose` gets one or more candidates and, parallel to them, the tokens of the prompt that each already holds."""

    name: str

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice: ...


class Kv:
    """Least predicted cost: the request's own wait plus the harm it does there (see cost.py)."""

    name = "kv"

    def __init__(self, rng: Random, rates: Rates | None = None) -> None:
        self._rng = rng
        self._rates = rates or Rates()

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        costs = costs_s(loads, overlaps, query.prompt_tokens, query.output_tokens, self._rates)
        return Choice(_least(costs, self._rng), "least predicted cost", costs)


class LeastLoad:
    """Fewest open requests."""

    name = "least_load"

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        running = [load.waiting + load.decoding for load in loads]
        return Choice(_least(running, self._rng), "fewest open requests")


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


class Session:
    """The same session to the same replica: rendezvous hashing, so that a change of the fleet moves only the sessions
    it must.

    Requests without a session go to the fewest open requests.
    """

    name = "session"

    def __init__(self, rng: Random) -> None:
        self._sessionless = LeastLoad(rng)

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        if not query.session:
            return self._sessionless.choose(query, loads, overlaps)
        seed = xxh3_64_intdigest(query.session.encode())
        weights = [xxh3_64_intdigest(load.name.encode(), seed) for load in loads]
        return Choice(weights.index(max(weights)), "the session's replica")


POLICIES: dict[str, Callable[[Random], Policy]] = {
    policy.name: policy for policy in (Kv, LeastLoad, RoundRobin, UniformRandom, Session)
}


def make_policy(name: str, rng: Random) -> Policy:
    """Raises ValueError, naming the known policies, for an unknown name."""
    try:
        return POLICIES[name](rng)
    except KeyError:
        raise ValueError(f"unknown policy {name!r}; known: {', '.join(POLICIES)}") from None


def _least(values: Sequence[float], rng: Random) -> int:
    """Position of the least value; among equals, at random."""
    least = min(values)
    ties = values.count(least)
    at = values.index(least)
    if ties > 1:
        for _ in range(int(rng.random() * ties)):
            at = values.index(least, at + 1)
    return at
