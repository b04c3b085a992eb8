"""Axes: from values to places on a drawing, round numbers to label them with, and how values are written.

Owns scales, ticks and units. Must never draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

LEAST_S = 1e-4
"""The smallest time that a logarithmic axis shows; shorter ones are drawn there."""

_LEAST_FACTOR = 6.0
_LEAST_COUNT = 4.0
_MOST_LABELS = 8
_WIDE_RATIO = 10.0
_FACTORS = ((1.8, (1, 2, 5)), (3.2, (1, 3)))
"""Up to how many decades each of them gets more ticks than one."""


class Axis(NamedTuple):
    """`write` turns a value into words with its unit, for hints and tables."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    write: Callable[[float], str]
    logarithmic: bool = False

    def place(self, value: float, start: float, end: float) -> float:
        """Where `value` lies between the pixels `start` (of `low`) and `end` (of `high`); values beyond lie on them."""
        return start + (end - start) * min(max(self._share(value), 0.0), 1.0)

    def value(self, share: float) -> float:
        """The value at that share of the axis: the inverse of `place`."""
        if self.logarithmic:
            return self.low * math.pow(self.high / self.low, share)
        return self.low + (self.high - self.low) * share

    def _share(self, value: float) -> float:
        if self.logarithmic:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def log_time_axis(label: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis of times, in seconds, wide enough for all and never so narrow that it lacks round numbers."""
    low = max(min(values, default=0.01), LEAST_S)
    high = max(max(values, default=1.0), low)
    if high / low < _LEAST_FACTOR:
        middle, half = math.sqrt(high * low), math.sqrt(_LEAST_FACTOR)
        low, high = middle / half, middle * half
    ticks = tuple((tick, seconds(tick)) for tick in _log_ticks(low, high))
    return Axis(label, low, high, ticks, seconds, logarithmic=True)


def clock_axis(end_s: float) -> Axis:
    high = end_s if end_s > LEAST_S else 1.0
    ticks = tuple((tick, f"{tick:,.10g}") for tick in round_ticks(high, 6))
    return Axis("time since the run's start, s", 0.0, high, ticks, lambda value: f"{value:,.6g} s")


def time_axis(label: str, values: Sequence[float]) -> Axis:
    """A linear axis of times from 0, labelled in milliseconds or seconds, whichever reads better."""
    highest = max(values, default=0.0)
    highest = highest if highest > LEAST_S else 1.0
    unit, factor = ("ms", 1e3) if highest < 2 else ("s", 1.0)
    high = _round_up(highest * factor)
    ticks = tuple((tick / factor, f"{tick:,g}") for tick in round_ticks(high, 5))
    return Axis(f"{label}, {unit}", 0.0, high / factor, ticks, seconds)


def count_axis(label: str, values: Sequence[float]) -> Axis:
    high = _round_up(max([*values, _LEAST_COUNT]))
    ticks = tuple((tick, f"{tick:,g}") for tick in round_ticks(high, 5))
    return Axis(label, 0.0, high, ticks, lambda value: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")


def share_axis(label: str) -> Axis:
    ticks = tuple((percent / 100, f"{percent}") for percent in (0, 25, 50, 75, 100))
    return Axis(f"{label}, %", 0.0, 1.0, ticks, lambda value: f"{value:.1%}")


def ratio_axis(label: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis around 1, for positive values. What is a thousand times more or less is drawn at its end."""
    low, high = max(min([*values, 0.8]) / 1.1, 1e-3), min(max([*values, 1.25]) * 1.1, 1e3)
    near = [tick for tick in (0.5, 0.8, 1.0, 1.25, 2.0) if low <= tick <= high]
    found = near if high / low < _WIDE_RATIO else _log_ticks(low, high)
    ticks = tuple((tick, f"{tick:g}×") for tick in found)
    return Axis(label, low, high, ticks, lambda value: f"{value:.3g}×", logarithmic=True)


def round_ticks(high: float, about: int) -> list[float]:
    """Round numbers from 0 to `high`, some `about` of them."""
    step = _round_step(high / about)
    return [step * index for index in range(int(high / step * (1 + 1e-9)) + 1)]


def seconds(value: float) -> str:
    """A time with the unit that reads best, to three figures."""
    if value == 0:
        return "0 s"
    if value < 0.9995e-3:
        return f"{value * 1e6:.3g} µs"
    if value < 0.9995:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} s" if value < 999.5 else f"{value:,.0f} s"


def _round_step(least: float) -> float:
    scale = 10.0 ** math.floor(math.log10(least))
    return next((factor * scale for factor in (1, 2, 2.5, 5) if factor * scale >= least * (1 - 1e-9)), 10 * scale)


def _round_up(high: float) -> float:
    """The first tick at or above, so that the highest value stays below the frame's top."""
    step = _round_step(high / 5)
    return step * math.ceil(high / step * (1 - 1e-9))


def _log_ticks(low: float, high: float) -> list[float]:
    decades = math.log10(high / low)
    factors = next((factors for most, factors in _FACTORS if decades <= most), (1,))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1, math.ceil(decades / _MOST_LABELS))
    every = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in every if low <= tick <= high]
