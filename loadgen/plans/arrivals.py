"""When sessions begin: a spec such as `poisson:2` as seeded start times.

Owns the forms of specs. Must never depend on what is asked: equal specs, seeds and durations give equal times under any
workload.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, count, takewhile
from random import Random
from typing import Literal

import msgspec

FORMS = (
    "poisson:RATE, gamma:RATE:CV, constant:RATE, ramp:FROM-TO (rates in sessions a second), closed:N (N sessions at "
    "once), or trace (a trace's own times)"
)
MOST_SESSIONS = 2_000_000
# Beyond it millions may come at once, whatever the rate; below it none of it can be told from 0.
LEAST_CV, MOST_CV = 1e-3, 100.0
Kind = Literal["poisson", "gamma", "constant", "ramp", "closed", "trace"]


class Arrivals(msgspec.Struct, frozen=True):
    """A spec that was read. Rates in sessions a second; `cv` is the gaps' standard deviation over their mean."""

    kind: Kind
    rate: float = 0.0
    to_rate: float = 0.0
    cv: float = 1.0
    concurrency: int | None = None

    @property
    def peak(self) -> float:
        """The highest rate, in sessions a second."""
        return max(self.rate, self.to_rate)


def read_arrivals(spec: str) -> Arrivals:
    """Raises ValueError for a spec of no known form."""
    kind, _, rest = spec.partition(":")
    try:
        return _read(kind, rest)
    except ValueError as error:
        reason = f" ({error})" if isinstance(error, _WrongError) else ""
        raise ValueError(f"arrivals: {spec!r} is none of {FORMS}{reason}") from None


class _WrongError(ValueError):
    """The form is right, a number in it is not."""


def _read(kind: str, rest: str) -> Arrivals:
    match kind:
        case "poisson" | "constant":
            return Arrivals(kind, _positive(rest))
        case "gamma":
            rate, cv = rest.split(":")
            if not LEAST_CV <= _positive(cv) <= MOST_CV:
                raise _WrongError(f"CV is between {LEAST_CV:g} and {MOST_CV:g}")
            return Arrivals(kind, _positive(rate), cv=float(cv))
        case "ramp":
            first, last = (_number(part) for part in rest.split("-"))
            if first < 0 or last < 0 or first == last == 0:
                raise _WrongError("rates are not negative, and not both 0")
            return Arrivals(kind, first, last)
        case "closed":
            places = int(rest)
            if places < 1:
                raise _WrongError("there is at least 1 session at a time")
            return Arrivals(kind, concurrency=places)
        case "trace" if not rest:
            return Arrivals(kind)
    raise ValueError(kind)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _WrongError(f"{text} is not finite")
    return number


def _positive(text: str) -> float:
    number = _number(text)
    if number <= 0:
        raise _WrongError(f"{text} is not above 0")
    return number


def start_times(arrivals: Arrivals, duration_s: float, seed: int) -> tuple[float, ...]:
    """Rising starts from 0 to below `duration_s`, in seconds. Raises ValueError for the kinds that know no times.

    Poisson times and a ramp's come of one stream: at another rate the same gaps are stretched.
    """
    if arrivals.peak * duration_s > MOST_SESSIONS:
        raise ValueError(f"arrivals: more than {MOST_SESSIONS} sessions; lower the rate or the duration")
    drawn = Random(f"arrivals {seed}")
    return tuple(takewhile(lambda start: start < duration_s, _times(arrivals, duration_s, drawn)))


def _times(arrivals: Arrivals, duration_s: float, drawn: Random) -> Iterator[float]:
    match arrivals.kind:
        case "constant":
            return (number / arrivals.rate for number in count())
        case "poisson":
            return accumulate(_unit_gap(drawn) / arrivals.rate for _ in count())
        case "gamma":
            shape = arrivals.cv**-2  # mean 1/rate, variance cv²/rate²
            return accumulate(drawn.gammavariate(shape, 1 / (shape * arrivals.rate)) for _ in count())
        case "ramp":
            return _ramp(arrivals, duration_s, drawn)
    raise ValueError(f"arrivals: {arrivals.kind} has no start times of its own")


def _unit_gap(drawn: Random) -> float:
    return -math.log(1.0 - drawn.random())


def _ramp(arrivals: Arrivals, duration_s: float, drawn: Random) -> Iterator[float]:
    """A Poisson process whose rate goes evenly from one to the other over the duration.

    By the time t, first·t + slope·t²/2 sessions are expected; unit gaps are put through the inverse of that.
    """
    slope = (arrivals.to_rate - arrivals.rate) / duration_s
    for expected in accumulate(_unit_gap(drawn) for _ in count()):
        squared = arrivals.rate**2 + 2 * slope * expected
        if squared < 0:  # a falling ramp never comes so far
            return
        yield 2 * expected / (arrivals.rate + math.sqrt(squared))
