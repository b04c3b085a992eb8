"""Percentiles, means and shares, defined once for every report.

Owns these few definitions. Must never know what it is counting, nor answer with anything but None or a finite number.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Linear interpolation between the two closest ranks (NumPy's default); None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def ratio(part: float, whole: float) -> float | None:
    """None where there is no whole, or one so small that the ratio has no finite value."""
    if not whole:
        return None
    found = part / whole
    return found if math.isfinite(found) else None


def max_over_mean(shares: Collection[float], count: int) -> float | None:
    """The largest share / the mean over `count` holders, of whom those not in `shares` hold nothing: 1 is even."""
    return ratio(max(shares, default=0.0) * count, sum(shares)) if count else None
