"""Looks at single blocks of the prefix index, for audits: is this one held, and a few that are, drawn at random.

Owns nothing. Must never change the index, nor do work that grows with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

from radix.index import PrefixIndex
from radix.run import WHOLE, Run, chosen

PROBES_A_KEY = 8
KEYS_A_RUN = 4


def holds(index: PrefixIndex, rid: int, keys: Iterable[int]) -> list[bool]:
    """For each key: whether the replica holds that block, whoever holds its ancestors.

    Raises ValueError for an unknown replica.
    """
    slot = index._slots.slot(rid)
    places = map(index._tree.table.find, keys)
    return [place is not None and _mask(place[0], slot) >> place[1] & 1 == 1 for place in places]


def sample(index: PrefixIndex, rid: int, count: int, rng: Random) -> list[int]:
    """Up to `count` different keys that the replica holds, drawn at random: each block is about as likely as another.

    At most eight runs are looked at for each key that is wanted: where the replica holds little of what the index has,
    there will be fewer keys. Raises ValueError for an unknown replica.
    """
    slot = index._slots.slot(rid)
    wanted = min(count, index._slots.held[slot])
    # Every n-th block of a run, some four of a middling one: long runs must yield more than short ones.
    stride = max(1, index._tree.known // (KEYS_A_RUN * len(index._tree.runs)))
    keys: dict[int, None] = {}
    for _ in range(PROBES_A_KEY):
        if len(keys) >= wanted:
            break
        for run in rng.choices(index._tree.runs, k=count):
            if run is not None and (mask := _mask(run, slot)):
                keys.update(dict.fromkeys(_held(run, mask)[int(rng.random() * stride) :: stride]))
    return rng.sample(list(keys), min(wanted, len(keys)))


def _mask(run: Run, slot: int) -> int:
    """The positions that the slot holds."""
    if run.full >> slot & 1:
        return WHOLE[len(run.keys)]
    return run.part.get(slot, 0) if run.part is not None else 0


def _held(run: Run, mask: int) -> Sequence[int]:
    return run.keys if mask == WHOLE[len(run.keys)] else list(chosen(run.keys, mask))
