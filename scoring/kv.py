"""The `kv` policy: the default.

Owns the choice by the cost of cost.py. Must never do I/O, read a clock, or change a load.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from scoring.cost import Weights, costs_s
from scoring.decision import Choice, Query
from scoring.ledger import ReplicaLoad
from scoring.ties import least


class Kv:
    """Least predicted cost: the request's own wait plus the harm it does there (see cost.py)."""

    name = "kv"

    def __init__(self, rng: Random, weights: Weights | None = None) -> None:
        self._rng = rng
        self._weights = weights or Weights()

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        costs = costs_s(query, loads, overlaps, self._weights)
        return Choice(least(costs, self._rng), "least predicted cost", costs)
