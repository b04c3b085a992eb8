"""Bursts of requests: how large, how alike, through which router, when. A seed and a scenario give one burst.

Owns the scenarios as plain data. Must never look at a clock or a server, so that all routers are asked the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from loadgen.herding.vocabulary import ordinary_tokens
from replica import tokenizer

EQUAL_TOKENS = 320
LARGE_TOKENS = 12_800
LARGE_REQUESTS = 4
TAIL_LEAST = 100
TAIL_MOST = 10_000
TAIL_SHAPE = 1.2
UNEVEN_SHARES = (7, 1, 1, 1)
PREFIX_TOKENS = 1600
OWN_TOKENS = 80


class BurstParameters(msgspec.Struct, frozen=True):
    """`requests` at random moments within `window_s`, through `routers` routers."""

    requests: int = 200
    window_s: float = 0.05
    routers: int = 4


@dataclass(frozen=True, slots=True)
class Shot:
    """One request, `at_s` seconds after the burst's start."""

    at_s: float
    router: int
    prompt: list[int]


@dataclass(frozen=True, slots=True)
class Burst:
    """`warm` prompts are answered before the burst, `before` are still open when it comes: both through router 0."""

    shots: list[Shot]
    warm: tuple[list[int], ...] = ()
    before: tuple[list[int], ...] = ()


class Words:
    """Seeded prompts of ordinary tokens, each unlike the others from its first block on."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._vocabulary = ordinary_tokens(tokenizer.directory())

    def draw(self, tokens: int) -> list[int]:
        return self._rng.choices(self._vocabulary, k=tokens)


def equal(asked: BurstParameters, rng: random.Random) -> Burst:
    words = Words(rng)
    return Burst([Shot(at, router, words.draw(EQUAL_TOKENS)) for at, router in _evenly(asked, rng)])


def heavy_tailed(asked: BurstParameters, rng: random.Random) -> Burst:
    """Pareto: many short prompts, and a few that are as long as a hundred of them."""
    words = Words(rng)
    sizes = [min(int(TAIL_LEAST * rng.paretovariate(TAIL_SHAPE)), TAIL_MOST) for _ in range(asked.requests)]
    return Burst(
        [Shot(at, router, words.draw(size)) for (at, router), size in zip(_evenly(asked, rng), sizes, strict=True)]
    )


def uneven(asked: BurstParameters, rng: random.Random) -> Burst:
    """Most of the burst comes through one router."""
    words = Words(rng)
    shares = [UNEVEN_SHARES[min(router, len(UNEVEN_SHARES) - 1)] for router in range(asked.routers)]
    routers = rng.choices(range(asked.routers), shares, k=asked.requests)
    return Burst(
        [Shot(at, router, words.draw(EQUAL_TOKENS)) for at, router in zip(_moments(asked, rng), routers, strict=True)]
    )


def loaded(asked: BurstParameters, rng: random.Random) -> Burst:
    """Some replicas have long prompts to compute already, which one router knows of."""
    words = Words(rng)
    before = tuple(words.draw(LARGE_TOKENS) for _ in range(LARGE_REQUESTS))
    return Burst([Shot(at, router, words.draw(EQUAL_TOKENS)) for at, router in _evenly(asked, rng)], before=before)


def siblings(asked: BurstParameters, rng: random.Random) -> Burst:
    """Prompts that share a long prefix, which one replica holds."""
    words = Words(rng)
    prefix = words.draw(PREFIX_TOKENS)
    shots = [Shot(at, router, prefix + words.draw(OWN_TOKENS)) for at, router in _evenly(asked, rng)]
    return Burst(shots, warm=(prefix + words.draw(OWN_TOKENS),))


Scenario = Callable[[BurstParameters, random.Random], Burst]

SCENARIOS: dict[str, tuple[Scenario, str]] = {
    "equal": (equal, f"distinct prompts of {EQUAL_TOKENS:,} tokens"),
    "heavy": (heavy_tailed, f"distinct prompts, Pareto {TAIL_SHAPE:g}, {TAIL_LEAST:,}–{TAIL_MOST:,} tokens"),
    "uneven": (uneven, f"as equal, the routers' shares {':'.join(map(str, UNEVEN_SHARES))}"),
    "loaded": (
        loaded,
        f"as equal, {LARGE_REQUESTS} prompts of {LARGE_TOKENS:,} tokens open already through one router (counted in)",
    ),
    "siblings": (
        siblings,
        f"prompts share {PREFIX_TOKENS:,} tokens, which one replica holds, and have {OWN_TOKENS} of their own",
    ),
}


def _moments(asked: BurstParameters, rng: random.Random) -> list[float]:
    return sorted(rng.random() * asked.window_s for _ in range(asked.requests))


def _evenly(asked: BurstParameters, rng: random.Random) -> list[tuple[float, int]]:
    """Moments, and the routers in turn."""
    return [(at, index % asked.routers) for index, at in enumerate(_moments(asked, rng))]
