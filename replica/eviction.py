"""What is given up when the block pool needs room: the questions, and the plain answer, the least recently used block.

Owns the interface between the pool and whoever decides. Blocks are told apart by their number. Must never give up a
block in use or one with a resident child, nor read a clock: time is handed in, in seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from replica.reuse_runs import Visit


class Eviction(Protocol):
    """What the block pool asks and tells. Every path lists blocks from the root on; only resident blocks are named."""

    def used(self, path: Sequence[int], now: float) -> Visit:
        """A table references this resident prefix from now on: none of it can be given up."""

    def ran(self, visit: Visit, now: float) -> None:
        """The table got its room, so the prefix it found counts as hit. Only the first call counts."""

    def stored(self, visit: Visit, path: Sequence[int], parent: int | None, keys: Sequence[int], now: float) -> None:
        """Blocks of the table became resident, the first of them after `parent`. They are in use."""

    def freed(self, visit: Visit, path: Sequence[int], now: float) -> None:
        """No table references these blocks any more, the last stretch of one path. They can be given up."""

    def victims(self, count: int, now: float) -> list[int]:
        """Gives up so many blocks, in order, each a leaf that nobody uses. Raises IndexError if there are fewer."""

    def cleared(self) -> None:
        """Nothing is resident any more, and nothing is in use."""

    def idle(self) -> set[int]:
        """Every block that may be given up sooner or later. For checks: it costs a walk over all blocks."""


class LeastRecent:
    """The block that has been free the longest. Children go before parents because they are freed before them."""

    def __init__(self) -> None:
        self._free: OrderedDict[int, None] = OrderedDict()

    def used(self, path: Sequence[int], now: float) -> Visit:
        free = self._free
        for block in path:
            free.pop(block, None)
        return Visit()

    def ran(self, visit: Visit, now: float) -> None:
        visit.ran = True

    def stored(self, visit: Visit, path: Sequence[int], parent: int | None, keys: Sequence[int], now: float) -> None:
        pass

    def freed(self, visit: Visit, path: Sequence[int], now: float) -> None:
        free = self._free
        for block in reversed(path):
            free[block] = None

    def victims(self, count: int, now: float) -> list[int]:
        if count > len(self._free):
            raise IndexError("not so many blocks can be given up")
        first = self._free.popitem
        return [first(last=False)[0] for _ in range(count)]

    def cleared(self) -> None:
        self._free.clear()

    def idle(self) -> set[int]:
        return set(self._free)
