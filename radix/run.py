"""Runs: the nodes of the prefix index, each a chain of blocks without a branch in between.

Owns the record of one run and the bit arithmetic of who holds what of it. Must never know about other runs: `index.py`
keeps the tree.

A run refers to the one above it by id. So runs never form reference cycles, the garbage collector need not track them,
and of an index of a million blocks it visits little more than the runs' arrays.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import compress

import msgspec

from radix.fanout import Children

MAX_BLOCKS = 256
"""Blocks a run may hold: their positions fit the eight bits that a hint of `table.py` has for them."""

WHOLE = tuple((1 << count) - 1 for count in range(MAX_BLOCKS + 1))
"""The mask of the first `count` positions of a run."""

_BITS = bytes(character & 1 for character in range(256))  # '0' -> 0, '1' -> 1


class Run(msgspec.Struct, gc=False, eq=False):
    """`full`: one bit per slot that holds every block. `part`: slot -> mask over positions, for those that hold some.

    `base` is the position that the hints in the table give the first block. `children` are keyed by their first block.
    """

    id: int
    parent: int
    base: int
    keys: array[int]
    children: Children[Run] | None
    full: int
    part: dict[int, int] | None


class Anchor(Run, gc=False, eq=False):
    """Stands for a block that nobody ever reported; its children are the orphans that name it as their parent."""

    key: int


def span(low: int, high: int) -> int:
    """The mask of positions low..high-1."""
    return WHOLE[high] ^ WHOLE[low]


def leading(mask: int) -> int:
    """How many positions, from the first, are set without a gap."""
    return (~mask & (mask + 1)).bit_length() - 1


def covered(run: Run) -> int:
    """How many of the run's blocks somebody holds."""
    if run.full:
        return len(run.keys)
    return _union(run).bit_count()


def height(run: Run) -> int:
    """One more than the last position that somebody holds."""
    if run.full:
        return len(run.keys)
    return _union(run).bit_length()


def _union(run: Run) -> int:
    union = 0
    if run.part:
        for mask in run.part.values():
            union |= mask
    return union


def common(run: Run, at: int, keys: Sequence[int], start: int) -> int:
    """How many blocks of the run from `at` on equal `keys` from `start` on.

    A key names its whole prefix, so equal ends mean equal chains, and a difference is found by bisection.
    """
    chain = run.keys
    high = min(len(chain) - at, len(keys) - start)
    if not high or chain[at + high - 1] == keys[start + high - 1]:
        return high
    low = 0
    high -= 1
    while low < high:
        middle = (low + high + 1) >> 1
        if chain[at + middle - 1] == keys[start + middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


def shared_range(run: Run, at: int, keys: Sequence[int], start: int) -> tuple[int, int]:
    """The run's blocks low..high-1 that `keys` names from `start` on, in either direction; index `at` is the first."""
    chain = run.keys
    low, next_key, stop = at, start + 1, len(keys)
    while low and next_key < stop and keys[next_key] == chain[low - 1]:
        low -= 1
        next_key += 1
    high = at + 1
    if low == at:
        while high < len(chain) and next_key < stop and keys[next_key] == chain[high]:
            high += 1
            next_key += 1
    return low, high


def set_part(run: Run, slot: int, mask: int) -> None:
    """The slot holds just the positions in `mask`, which are not all of the run's."""
    if mask:
        if run.part is None:
            run.part = {slot: mask}
        else:
            run.part[slot] = mask
    elif run.part is not None and run.part.pop(slot, 0) and not run.part:
        run.part = None


def spread_part(run: Run, part: dict[int, int] | None, shift: int) -> None:
    """Gives a run whose blocks were once at `shift` of a longer one the masks that others have over that one."""
    run.part = None
    whole = WHOLE[len(run.keys)]
    for slot, mask in part.items() if part else ():
        mask = mask >> shift & whole
        if mask == whole:
            run.full |= 1 << slot
        else:
            set_part(run, slot, mask)


def chosen(things: Iterable[int], mask: int) -> Iterable[int]:
    """Those of `things` whose bit is set in `mask`."""
    return compress(things, bin(mask)[:1:-1].encode().translate(_BITS))
