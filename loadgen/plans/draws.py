"""Random streams of a plan, and what workloads draw from them.

Owns the streams' names: starts (see `arrivals`), popularity, lengths and pauses each have their own, so that another
popularity changes no time, and longer answers change no popularity. Must never draw two kinds of things from one.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate
from random import Random

import msgspec

from loadgen.plans.plan import Session, Turn
from loadgen.plans.settings import Span


class Times(msgspec.Struct, frozen=True):
    """When sessions start, in rising seconds, and the end of the run. In a closed loop all starts are 0."""

    seed: int
    duration_s: float
    starts: tuple[float, ...]


class Pace(msgspec.Struct, frozen=True):
    """Between a session's turns: exponential pauses of this mean, in seconds. A causal one begins at the end of the
    answer before it, any other when the turn before it was due."""

    mean_s: float
    causal: bool


def ranks(count: int, exponent: float, seed: int) -> Iterator[int]:
    """Whom each session belongs to: ranks from 0 without end, rank k as often as (k+1)^-exponent says (Zipf)."""
    cumulative = list(accumulate(zipf_weights(count, exponent)))
    drawn = Random(f"popularity {seed}")
    while True:
        yield min(bisect(cumulative, drawn.random()), count - 1)


def zipf_weights(count: int, exponent: float) -> list[float]:
    """Popularity of ranks 1..count, summing to 1: weight of rank k is proportional to k^-exponent."""
    weights = [rank**-exponent for rank in range(1, count + 1)]
    total = sum(weights)
    return [weight / total for weight in weights]


def shared_lengths(count: int, tokens: Span, seed: int) -> list[int]:
    """The lengths of what sessions share: documents, tool sets."""
    drawn = Random(f"shared lengths {seed}")
    return [drawn.randint(*tokens) for _ in range(count)]


def session_lengths(seed: int, number: int) -> Random:
    """The stream that a session's own lengths come from; of each session, so that none shifts the others'."""
    return Random(f"lengths {seed} {number}")


def paced(number: int, group: int, turns: Sequence[Turn], times: Times, pace: Pace) -> Session:
    """The session of this number. Turns whose moment is fixed, and not within the run, are left out."""
    drawn = Random(f"pauses {times.seed} {number}")
    due = start = times.starts[number]
    kept: list[Turn] = []
    for turn in turns:
        pause = -math.log(1.0 - drawn.random()) * pace.mean_s if kept else 0.0
        due += pause
        if pace.causal:
            kept.append(msgspec.structs.replace(turn, think_s=pause))
        elif due < times.duration_s:
            kept.append(msgspec.structs.replace(turn, due_s=due))
        else:
            break
    return Session(start, tuple(kept), group)
