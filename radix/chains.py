"""From a heap of (key, parent) pairs to runs of blocks in the order in which an index wants to store them.

Owns that one algorithm. Must never recurse, nor loop on nonsense: pairs that go round in a circle are left out.
"""

from __future__ import annotations

import asyncio
from array import array

from radix.index import PrefixIndex

PAUSE_BLOCKS = 4096  # between two turns of the event loop: a few milliseconds of work


class Pairs:
    """What one holder has, gathered in any order. A first block is its own parent."""

    def __init__(self) -> None:
        self._flat = array("Q")

    def add(self, packed: bytes) -> None:
        """Takes keys and parents by turns, packed as in events.py. Raises ValueError when it is not whole pairs."""
        self._flat.frombytes(packed)

    async def store(self, index: PrefixIndex, rid: int) -> None:
        """Into the index, parents before their children, while others have their turns of the event loop."""
        tops, child, siblings = await self._sorted()
        worked = 0
        while tops:
            parent, key = tops.pop()
            chain = []
            following: int | None = key
            while following is not None:
                chain.append(following)
                if following in siblings:
                    tops.extend((following, sibling) for sibling in siblings[following])
                following = child.get(following)
            index.store(rid, parent, chain)
            worked += len(chain)
            if worked >= PAUSE_BLOCKS:
                worked = 0
                await asyncio.sleep(0)

    async def _sorted(self) -> tuple[list[tuple[int | None, int]], dict[int, int], dict[int, list[int]]]:
        """Where chains begin (parent, key), each block's first child, and its other children."""
        keys, parents = self._flat[0::2], self._flat[1::2]
        held = set(keys)
        tops: list[tuple[int | None, int]] = []
        child: dict[int, int] = {}
        siblings: dict[int, list[int]] = {}
        for start in range(0, len(keys), PAUSE_BLOCKS):
            stop = start + PAUSE_BLOCKS
            for key, parent in zip(keys[start:stop], parents[start:stop], strict=True):
                if parent == key:
                    tops.append((None, key))
                elif parent not in held:
                    tops.append((parent, key))
                elif child.setdefault(parent, key) != key:
                    siblings.setdefault(parent, []).append(key)
            await asyncio.sleep(0)
        return tops, child, siblings
