"""Which values the sampling parameters may take.

Owns the ranges, for clients' requests and for a model's own defaults alike. Must never read either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """From `low` to `high`, both included; without `low` itself if `above`."""

    low: float
    high: float = math.inf
    above: bool = False

    def admits(self, value: float) -> bool:
        return math.isfinite(value) and not self.too_low(value) and value <= self.high

    def too_low(self, value: float) -> bool:
        return value < self.low or (self.above and value == self.low)


RANGES = {
    "temperature": Range(0, 2),
    "top_k": Range(-1, 2**31 - 1),  # 0 and -1: no limit
    "top_p": Range(0, 1, above=True),
    "min_p": Range(0, 1),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "repetition_penalty": Range(0.01, 100),  # beyond, logits become infinite
    "seed": Range(-(2**63), 2**63 - 1),
}
