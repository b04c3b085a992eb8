"""Policies that hash something of the request to a replica, and need not know what is cached.

Owns `session`, `sticky` and `prefix_hash`, and their consistent hash. It is rendezvous hashing (Thaler and Ravishankar,
1998): the replica with the highest hash of (key, name) wins. So a replica that leaves moves only its own keys, each to
its own next best; one that joins takes only what becomes its own; and nothing is remembered between requests.

Requests without a key go to the fewest open requests. Must never do I/O, read a clock, or change a load.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from xxhash import xxh3_64_intdigest

from scoring.by_load import LeastLoad, open_requests
from scoring.decision import Choice, Query
from scoring.ledger import ReplicaLoad

# In percent of the mean number of open requests: what KubeAI takes, and brpc.
LOAD_BOUND = 125


def weights(key: int, loads: Sequence[ReplicaLoad]) -> list[int]:
    """The hash of each replica's name under an unsigned 64-bit key: the highest is the key's home."""
    return [xxh3_64_intdigest(load.name.encode(), key) for load in loads]


class Session:
    """The same session to the same replica."""

    name = "session"

    def __init__(self, rng: Random) -> None:
        self._keyless = LeastLoad(rng)

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        if not query.session:
            return self._keyless.choose(query, loads, overlaps)
        hashes = weights(xxh3_64_intdigest(query.session.encode()), loads)
        return Choice(hashes.index(max(hashes)), "the session's replica")


class Sticky:
    """The same first two blocks to the same replica, however busy it is: hit rates close to those of one pooled cache,
    and queues without a bound where a beginning is popular.
    """

    name = "sticky"

    def __init__(self, rng: Random) -> None:
        self._keyless = LeastLoad(rng)

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        if not query.prefix:
            return self._keyless.choose(query, loads, overlaps)
        return self._place(weights(query.prefix, loads), loads)

    def _place(self, hashes: list[int], loads: Sequence[ReplicaLoad]) -> Choice:
        return Choice(hashes.index(max(hashes)), "the prefix's replica")


class PrefixHash(Sticky):
    """The same first two blocks to the same replica, unless it has more than 125 % of the mean load: then to the next
    in the key's own order that has not. With this request, no replica chosen has more open requests than
    ceil(1.25 · (total + 1) / replicas), and some replica always can be chosen.

    Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, arXiv 1608.01350), which KubeAI applies
    to prompts as its strategy PrefixHash (substratusai/kubeai on GitHub, internal/loadbalancer/balance_chwbl.go at
    08e69e5: bound 125 %, a ring of 256 points a replica, the prompt's first 100 characters). Different here: rendezvous
    hashing instead of the ring, so that the overflow of a busy replica spreads over all others; two blocks instead of
    100 characters; and the bound is rounded up, as in the paper. KubeAI does not round: below some 0.8 open requests a
    replica nobody meets its bound, and all requests of a prefix go to one replica.
    """

    name = "prefix_hash"

    def _place(self, hashes: list[int], loads: Sequence[ReplicaLoad]) -> Choice:
        home = hashes.index(max(hashes))
        running = open_requests(loads)
        bound = -(-LOAD_BOUND * (sum(running) + 1) // (100 * len(loads)))  # rounded up
        if running[home] < bound:
            return Choice(home, "the prefix's replica")
        index = max((position for position, count in enumerate(running) if count < bound), key=hashes.__getitem__)
        return Choice(index, "the prefix's replica is too busy: its next")
