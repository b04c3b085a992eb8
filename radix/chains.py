"""From a heap of (key, parent) pairs to chains of blocks in the order in which an index wants to store them.

Owns that one algorithm. Must never recurse, nor loop on nonsense: pairs that go round in a circle are left out.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from radix.index import PrefixIndex
from radix.turns import Turns

SLICE_BLOCKS = 1024  # at once: half a millisecond of work


class Pairs:
    """Blocks that have the same holders, gathered in any order. A first block is its own parent."""

    def __init__(self) -> None:
        self._flat = array("Q")

    def add(self, packed: bytes | bytearray) -> None:
        """Takes keys and parents by turns, packed as in events.py. Raises ValueError when it is not whole pairs."""
        self._flat.frombytes(packed)

    async def store(self, index: PrefixIndex, rids: Sequence[int], turns: Turns) -> None:
        """Into the index for each of the replicas, parents before their children."""
        tops, child, siblings = await self._sorted(turns)
        while tops:
            parent, key = tops.pop()
            chain: list[int] = []
            following: int | None = key
            while following is not None and len(chain) < SLICE_BLOCKS:
                chain.append(following)
                if following in siblings:
                    tops.extend((following, sibling) for sibling in siblings[following])
                following = child.get(following)
            if following is not None:
                tops.append((chain[-1], following))
            for rid in rids:
                index.store(rid, parent, chain)
                await turns.offer()

    async def _sorted(self, turns: Turns) -> tuple[list[tuple[int | None, int]], dict[int, int], dict[int, list[int]]]:
        """Where chains begin (parent, key), each block's first child, and its other children."""
        keys, parents = self._flat[0::2], self._flat[1::2]
        slices = [slice(start, start + SLICE_BLOCKS) for start in range(0, len(keys), SLICE_BLOCKS)]
        held: set[int] = set()
        for part in slices:
            held.update(keys[part])
            await turns.offer()
        tops: list[tuple[int | None, int]] = []
        child: dict[int, int] = {}
        siblings: dict[int, list[int]] = {}
        for part in slices:
            for key, parent in zip(keys[part], parents[part], strict=True):
                if parent == key:
                    tops.append((None, key))
                elif parent not in held:
                    tops.append((parent, key))
                elif child.setdefault(parent, key) != key:
                    siblings.setdefault(parent, []).append(key)
            await turns.offer()
        return tops, child, siblings
