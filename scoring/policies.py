"""The policies: given what each candidate holds of the prompt and how busy it is, which one gets the request.

Owns the interface and the names; the choices are in kv.py, by_load.py, hashing.py and, for comparison, peers.py. A
policy is a small object with `choose`; those that remember something between requests (round robin's turn) keep it in
themselves. Ties break at random among equals, so that several routers with equal views do not herd. A policy must never
do I/O, read a clock, or change a load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from scoring.by_load import LeastLoad, PowerOfTwo, RoundRobin, UniformRandom
from scoring.decision import Choice, Query
from scoring.hashing import PrefixHash, Session, Sticky
from scoring.kv import Kv
from scoring.ledger import ReplicaLoad
from scoring.peers import LikeAibrix, LikeDynamo, LikeLlmd, LikeLlmdScorers, LikeSglang, LongestPrefix


class Policy(Protocol):
    """`choose` gets one or more candidates and, parallel to them, the tokens of the prompt that each already holds."""

    name: str

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice: ...


POLICIES: dict[str, Callable[[Random], Policy]] = {
    Kv.name: Kv,
    LeastLoad.name: LeastLoad,
    PowerOfTwo.name: PowerOfTwo,
    RoundRobin.name: RoundRobin,
    UniformRandom.name: UniformRandom,
    Session.name: Session,
    PrefixHash.name: PrefixHash,
    Sticky.name: Sticky,
    LongestPrefix.name: LongestPrefix,
    LikeDynamo.name: LikeDynamo,
    LikeSglang.name: LikeSglang,
    LikeLlmd.name: LikeLlmd,
    LikeLlmdScorers.name: LikeLlmdScorers,
    LikeAibrix.name: LikeAibrix,
}


def make_policy(name: str, rng: Random) -> Policy:
    """Raises ValueError, naming the known policies, for an unknown name."""
    try:
        return POLICIES[name](rng)
    except KeyError:
        raise ValueError(f"unknown policy {name!r}; known: {', '.join(POLICIES)}") from None
