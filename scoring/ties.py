"""The least of several values, at random among equals, so that several routers with equal views do not herd.

Owns that choice only.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random


def least(values: Sequence[float], rng: Random) -> int:
    """Position of the least value; among equals, at random. Raises ValueError when there are none."""
    lowest = min(values)
    ties = values.count(lowest)
    at = values.index(lowest)
    if ties > 1:
        for _ in range(int(rng.random() * ties)):
            at = values.index(lowest, at + 1)
    return at


def least_of(positions: Sequence[int], values: Sequence[float], rng: Random) -> int:
    """That of `positions` with the least of `values`; among equals, at random."""
    return positions[least([values[position] for position in positions], rng)]
