"""Block traffic to measure a prefix index with: shared documents, conversations about them, and unkind shapes.

Owns the shapes. Keys are random numbers: to an index, a chain of them is as good as one of hashes. Must never keep
more than it is told to, so that memory can be measured around it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

SYSTEM_BLOCKS = 32
DOCUMENTS = 400
DOCUMENT_BLOCKS = (125, 500)  # 2k to 8k tokens in blocks of 16
TURN_BLOCKS = (8, 40)
TURNS = 12
ACTIVE = 1000


@dataclass(frozen=True)
class Store:
    """`new`: no replica ever stored these blocks before."""

    replica: int
    parent: int | None
    keys: list[int]
    new: bool


@dataclass
class Conversation:
    """`start`: system prompt and document. `turns`: what came after, if it is kept."""

    replica: int
    start: array[int]
    last: int
    left: int
    turns: array[int] = field(default_factory=lambda: array("Q"))

    def path(self) -> list[int]:
        return (self.start + self.turns).tolist()


def fresh(random: Random, count: int) -> list[int]:
    return [random.getrandbits(64) for _ in range(count)]


class Traffic:
    """`replicas` replicas, numbered from 0, store until there are `blocks` distinct blocks. `kept`: conversations."""

    def __init__(self, replicas: int, blocks: int, keep: bool) -> None:
        self.kept: list[Conversation] = []
        self._random = Random(7)
        self._replicas = replicas
        self._blocks = blocks
        self._keep = keep
        system = fresh(self._random, SYSTEM_BLOCKS)
        self._starts = [
            array("Q", system + fresh(self._random, self._random.randint(*DOCUMENT_BLOCKS))) for _ in range(DOCUMENTS)
        ]
        self._popularity = [1 / rank for rank in range(1, DOCUMENTS + 1)]

    def stores(self) -> Iterator[Store]:
        random, left = self._random, self._blocks
        active: list[Conversation] = []
        while left > 0:
            if len(active) < ACTIVE:
                active.append(self._begin())
                yield Store(active[-1].replica, None, active[-1].start.tolist(), False)
            at = random.randrange(len(active))
            talk = active[at]
            keys = fresh(random, random.randint(*TURN_BLOCKS))
            yield Store(talk.replica, talk.last, keys, True)
            left -= len(keys)
            talk.last = keys[-1]
            if self._keep:
                talk.turns.extend(array("Q", keys))
            talk.left -= 1
            if not talk.left:
                active[at] = active[-1]
                active.pop()

    def _begin(self) -> Conversation:
        (start,) = self._random.choices(self._starts, self._popularity)
        talk = Conversation(self._random.randrange(self._replicas), start, start[-1], self._random.randint(1, TURNS))
        if self._keep:
            self.kept.append(talk)
        return talk


def short_prompts(replicas: int, blocks: int, length: int) -> Iterator[Store]:
    """Prompts that share nothing."""
    random = Random(8)
    for number in range(blocks // length):
        yield Store(number % replicas, None, fresh(random, length), True)


def comb(replicas: int, depth: int, teeth: int) -> Iterator[Store]:
    """Chains that branch after each block, so that no run has more than one."""
    random = Random(9)
    for tooth in range(teeth):
        chain = fresh(random, depth)
        yield Store(tooth % replicas, None, chain, True)
        for block in chain[:-1]:
            yield Store(tooth % replicas, block, fresh(random, 1), True)
