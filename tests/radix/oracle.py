"""The plainest possible truth about residency, to hold the index against: a trie from key path to its holders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pygtrie

from radix.blocks import block_keys, namespace_seed

SEED = namespace_seed("oracle")

Path = Sequence[int]
"""A prompt of one-token blocks."""


def keys_of(path: Path) -> list[int]:
    return block_keys(path, 1, SEED)


class Oracle:
    """Holders by path, as tuples of tokens."""

    def __init__(self) -> None:
        self._holders = pygtrie.Trie()

    def store(self, replica: int, path: Path, start: int = 0) -> None:
        """The blocks of `path` from index `start` on."""
        for end in range(start + 1, len(path) + 1):
            self._holders.setdefault(tuple(path[:end]), set()).add(replica)

    def remove(self, replica: int, path: Path, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._holders.get(tuple(path[: block + 1]), set()).discard(replica)

    def clear(self, replica: int) -> None:
        for holders in self._holders.values():
            holders.discard(replica)

    def overlaps(self, path: Path) -> dict[int, int]:
        """Each replica's longest contiguous overlap, if any."""
        overlaps: dict[int, int] = {}
        going: set[int] | None = None
        for end in range(1, len(path) + 1):
            holders = self._holders.get(tuple(path[:end]), set())
            going = set(holders) if going is None else going & holders
            overlaps.update(dict.fromkeys(going, end))
        return overlaps

    def blocks(self, replica: int) -> int:
        return sum(replica in holders for holders in self._holders.values())

    def keys(self, replica: int) -> set[int]:
        return {key for path, key in self._keys() if replica in self._holders[path]}

    def __len__(self) -> int:
        return sum(1 for holders in self._holders.values() if holders)

    def paths(self) -> list[tuple[int, ...]]:
        return [path for path, holders in self._holders.items() if holders]

    def _keys(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """Every path with the key of its last block. Parents come before their children."""
        keys: dict[tuple[int, ...], int] = {}
        for path in self._holders:
            above = keys.get(path[:-1])
            keys[path] = keys_of(path)[-1] if above is None else block_keys(path[-1:], 1, above)[0]
        yield from keys.items()
