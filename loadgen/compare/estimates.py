"""A statistic's value and how sure it is.

Owns the two ways to a 95 % interval: Student's t over repetitions where there are three or more, else a bootstrap over
sessions. Must never know what is measured.

Repetitions are whole runs, so t speaks of what running it all once more would change. A bootstrap draws sessions anew,
each with all its requests of all repetitions on both sides (a session's requests resemble each other, and both sides
were asked the same), and speaks of what other sessions like these would change. Equal seeds give equal intervals.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from random import Random
from statistics import fmean, stdev

from loadgen.compare.columns import Weights
from loadgen.compare.schema import CONFIDENCE, Estimate
from loadgen.compare.student import t_quantile
from loadgen.reports.statistics import mean, percentile

ENOUGH_REPETITIONS = 3
RESAMPLES = 1000
LEAST_RESAMPLES = 300
RESAMPLED_REQUESTS = 2_000_000  # in all draws, unless there are only the least: a fraction of a second a statistic

# Of one repetition; None where it is not defined.
Statistic = Callable[[Weights], float | None]


class Sessions:
    """All sessions of a comparison by their place, and the draws from them, the same for all that is estimated."""

    def __init__(self, sessions: Iterable[int], requests: int, seed: int) -> None:
        self.place = {session: place for place, session in enumerate(sorted(set(sessions)))}
        self.once = [1] * len(self.place)
        self._draws = max(LEAST_RESAMPLES, min(RESAMPLES, RESAMPLED_REQUESTS // max(requests, 1)))
        self._seed = seed
        self._drawn: list[list[int]] = []

    def drawn(self) -> list[list[int]]:
        """Weights: as many sessions with replacement as there are. Made when first needed."""
        rng, places = Random(self._seed), range(len(self.once))
        while self.once and len(self._drawn) < self._draws:
            counts = Counter(rng.choices(places, k=len(places)))
            self._drawn.append([counts[place] for place in places])
        return self._drawn


def estimate(repetitions: Sequence[Statistic], sessions: Sessions, measured: int) -> Estimate:
    """The mean over repetitions of a statistic of whole runs. `measured` is how many sessions have anything in it."""
    known = [value for value in (statistic(sessions.once) for statistic in repetitions) if value is not None]
    if len(known) >= ENOUGH_REPETITIONS:
        return over_repetitions(known)
    if measured < 2 or not known:
        return Estimate(mean(known), samples=measured)
    again = [mean([v for v in (of(weights) for of in repetitions) if v is not None]) for weights in sessions.drawn()]
    drawn = [value for value in again if value is not None]
    beyond = 100 * (1 - CONFIDENCE) / 2
    low, high = percentile(drawn, beyond), percentile(drawn, 100 - beyond)
    return Estimate(fmean(known), low, high, "bootstrap", measured)


def estimate_ratio(repetitions: Sequence[Statistic], sessions: Sessions, measured: int) -> Estimate:
    """The geometric mean instead, of a statistic above zero: twice and half are equally far from one."""

    def logarithm(statistic: Statistic) -> Statistic:
        def of(weights: Weights) -> float | None:
            value = statistic(weights)
            return math.log(value) if value is not None and value > 0 else None

        return of

    found = estimate(list(map(logarithm, repetitions)), sessions, measured)
    return Estimate(_exp(found.value), _exp(found.low), _exp(found.high), found.method, found.samples)


def over_repetitions(values: Sequence[float]) -> Estimate:
    """The mean of two or more values with Student's interval."""
    middle = fmean(values)
    reach = t_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(middle, middle - reach, middle + reach, "t", len(values))


def _exp(value: float | None) -> float | None:
    """None also where it is beyond what a float holds: as good as unknown."""
    return math.exp(value) if value is not None and value < 700 else None
