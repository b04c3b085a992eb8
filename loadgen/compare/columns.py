"""Values of requests, each of a session, and what they come to when sessions count several times or not at all.

Owns the weighted mean, sum and percentile that a bootstrap needs: drawing sessions anew and sorting all their values
each time would take a minute where this takes seconds. With every session counted once they are those of
`reports.statistics`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import itemgetter, mul

Weights = Sequence[int]  # how often each session counts, by its place


class Column:
    """`values` are (place of the session, value)."""

    def __init__(self, values: Iterable[tuple[int, float]]) -> None:
        ordered = sorted(values, key=itemgetter(1))
        self._places = [place for place, _ in ordered]
        self._values = [value for _, value in ordered]

    def __len__(self) -> int:
        return len(self._values)

    @property
    def places(self) -> frozenset[int]:
        return frozenset(self._places)

    def count(self, weights: Weights) -> int:
        return sum(map(weights.__getitem__, self._places))

    def sum(self, weights: Weights) -> float:
        return math.fsum(map(mul, map(weights.__getitem__, self._places), self._values))

    def mean(self, weights: Weights) -> float | None:
        """None of no values."""
        count = self.count(weights)
        return self.sum(weights) / count if count else None

    def percentile(self, percent: float, weights: Weights) -> float | None:
        """Linear interpolation between the two closest ranks; None of no values."""
        ranks = list(accumulate(map(weights.__getitem__, self._places)))
        if not ranks or not ranks[-1]:
            return None
        position = (ranks[-1] - 1) * percent / 100
        below = math.floor(position)
        low = self._values[bisect_right(ranks, below)]
        high = self._values[bisect_right(ranks, min(below + 1, ranks[-1] - 1))]
        return low + (high - low) * (position - below)
