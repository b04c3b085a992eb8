"""How much a kept block is worth: the hits a second to be expected of it, learned from how long its like had to wait.

Owns the counts of hits and misses by kind and age, and the curves drawn from them. Must never know a block or a clock.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import add

AGES = 28
"""Ages are told apart by their logarithm: below FIRST_S, then four steps for three octaves; the last one has no end."""
STEPS_AN_OCTAVE = 4 / 3
FIRST_S = 1 / 64
EDGES = (0.0, *(FIRST_S * 2.0 ** (step / STEPS_AN_OCTAVE) for step in range(AGES)))
INNER_EDGES = EDGES[1:AGES]
WIDTHS = tuple(after - before for before, after in pairwise(EDGES))
PRIOR = 30.0
"""So many hits of its own make a curve weigh as much as what it is drawn towards."""

Kind = tuple[int, bool, int]
"""Turns of the conversation so far, whether the block ended the prompt, class of the gap before the last turn."""


def age_step(age: float) -> int:
    """Which of the AGES steps an age in seconds falls into."""
    return bisect_right(INNER_EDGES, age)


def densities(hazard: Sequence[float]) -> list[float]:
    """For each age step: the hits a second of the best time to wait, given the hits a second at risk in each."""
    # Waiting on past a step is worth it while that raises the density: so from the last step back, each step is taken
    # together with what follows as long as that is denser than itself.
    following: list[tuple[float, float, float]] = []  # hits, seconds and the share that is left, of one that enters
    best = [0.0] * AGES
    for step in range(AGES - 1, -1, -1):
        rate, width = hazard[step], WIDTHS[step]
        stay = math.exp(-rate * width)
        hits = 1.0 - stay
        seconds = hits / rate if rate > 1e-12 else width
        while following and following[-1][0] * seconds > hits * following[-1][1]:
            more, longer, left = following.pop()
            hits, seconds, stay = hits + stay * more, seconds + stay * longer, stay * left
        following.append((hits, seconds, stay))
        best[step] = hits / seconds
    return best


class ReuseCurves:
    """Reuse density by kind and age, learned from spells: a block's last use to its next, or until it is forgotten.

    A kind's hazard is the shape common to all kinds of its gap class times one factor; both are drawn towards the whole
    where hits are few.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._hits: dict[Kind, list[float]] = {}
        self._misses: dict[Kind, list[float]] = {}
        self._hazards: dict[int, list[float]] = {}
        self._factors: dict[Kind, float] = {}
        self._worth = _Worth({}, {})

    @property
    def hits(self) -> float:
        """Hits the curves rest on, the faded ones less."""
        return sum(map(sum, self._hits.values()))

    def learn(self, kind: Kind, age: float, hit: bool, blocks: int = 1) -> None:
        """So many blocks were hit, or forgotten, at this age in seconds."""
        table = self._hits if hit else self._misses
        counts = table.get(kind)
        if counts is None:
            self._hits.setdefault(kind, [0.0] * AGES)
            self._misses.setdefault(kind, [0.0] * AGES)
            counts = table[kind]
        counts[age_step(age)] += blocks

    @property
    def worth(self) -> Mapping[Kind, list[float]]:
        """The densities by age step, in hits a second, of any kind asked for. Good until the next `refresh`."""
        return self._worth

    def refresh(self, waiting: dict[Kind, list[float]]) -> None:
        """Draws the curves anew. `waiting`: blocks still at risk, by kind and age step."""
        none = [0.0] * AGES
        risks = {kind: self._at_risk(kind, waiting.get(kind, none)) for kind in self._hits}
        whole = _rates(_sums(self._hits.values()), _sums(risks.values()), none, 0.0)
        self._hazards = {-1: whole}
        for gap in {kind[2] for kind in self._hits}:
            hits = _sums(counts for kind, counts in self._hits.items() if kind[2] == gap)
            risk = _sums(risk for kind, risk in risks.items() if kind[2] == gap)
            factor = _factor(hits, risk, whole)
            self._hazards[gap] = _rates(hits, risk, [factor * rate for rate in whole], PRIOR)
        self._factors = {kind: _factor(hits, risks[kind], self._hazards[kind[2]]) for kind, hits in self._hits.items()}
        self._worth = _Worth(self._hazards, self._factors)
        self._fade()

    def _at_risk(self, kind: Kind, waiting: list[float]) -> list[float]:
        """Block-seconds spent in each age step. Whoever leaves within a step was there for half of it."""
        risk, later = [0.0] * AGES, 0.0
        hits, misses = self._hits[kind], self._misses[kind]
        for step in range(AGES - 1, -1, -1):
            here = hits[step] + misses[step] + waiting[step]
            risk[step] = (later + here / 2) * WIDTHS[step]
            later += here
        return risk

    def _fade(self) -> None:
        total = sum(map(sum, self._hits.values())) + sum(map(sum, self._misses.values()))
        if total > self._memory:
            share = self._memory / total
            for table in (self._hits, self._misses):
                for kind, counts in table.items():
                    table[kind] = [count * share for count in counts]


class _Worth(dict[Kind, list[float]]):
    """Densities by kind, drawn when they are first asked for."""

    def __init__(self, hazards: Mapping[int, list[float]], factors: Mapping[Kind, float]) -> None:
        super().__init__()
        self._hazards = hazards
        self._factors = factors

    def __missing__(self, kind: Kind) -> list[float]:
        factor = self._factors.get(kind, 1.0)
        hazard = self._hazards.get(kind[2]) or self._hazards.get(-1) or [0.0] * AGES
        found = self[kind] = densities([factor * rate for rate in hazard])
        return found


def _sums(rows: Iterable[list[float]]) -> list[float]:
    total = [0.0] * AGES
    for row in rows:
        total = list(map(add, total, row))
    return total


def _rates(hits: list[float], risk: list[float], towards: list[float], prior: float) -> list[float]:
    """Hits a second at risk, as if `prior` more hits had come at the rate `towards`."""
    rates = []
    for count, seconds, rate in zip(hits, risk, towards, strict=True):
        if prior and rate > 0.0:
            count, seconds = count + prior, seconds + prior / rate
        rates.append(count / seconds if seconds > 0.0 else 0.0)
    return rates


def _factor(hits: list[float], risk: list[float], hazard: list[float]) -> float:
    """How many times as many hits came as `hazard` let expect."""
    expected = sum(rate * seconds for rate, seconds in zip(hazard, risk, strict=True))
    return (sum(hits) + PRIOR / 2) / (expected + PRIOR / 2)
