"""The children of one run, by their first block's key.

Owns the two forms they take: a plain dict, and past FANOUT_AT children a Fanout of many small dicts. Some prefixes (a
system prompt, the root) have a child for each conversation of a fleet; one dict that large stops the process for tens
of milliseconds each time it grows. Must never be asked for an order: children have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Generic, TypeVar

T = TypeVar("T")

FANOUT_AT = 4096
_SHARDS = 256


class Fanout(Generic[T]):
    """As much of a dict as the index asks for, spread over shards by the key's low bits."""

    __slots__ = ("_count", "_shards")

    def __init__(self, children: dict[int, T]) -> None:
        self._shards: tuple[dict[int, T], ...] = tuple({} for _ in range(_SHARDS))
        self._count = 0
        for key, child in children.items():
            self[key] = child

    def get(self, key: int) -> T | None:
        return self._shards[key % _SHARDS].get(key)

    def __setitem__(self, key: int, child: T) -> None:
        shard = self._shards[key % _SHARDS]
        self._count += key not in shard
        shard[key] = child

    def __delitem__(self, key: int) -> None:
        del self._shards[key % _SHARDS][key]
        self._count -= 1

    def __len__(self) -> int:
        return self._count

    def values(self) -> Iterator[T]:
        return chain.from_iterable(shard.values() for shard in self._shards)


Children = dict[int, T] | Fanout[T]


def with_child(children: Children[T] | None, key: int, child: T) -> Children[T]:
    """`children` with one more, changed in place unless their form has to change."""
    if children is None:
        return {key: child}
    children[key] = child
    if len(children) > FANOUT_AT and isinstance(children, dict):
        return Fanout(children)
    return children


def without_child(children: Children[T], key: int) -> Children[T] | None:
    """`children` with one less, None for none at all."""
    del children[key]
    return children if len(children) else None
