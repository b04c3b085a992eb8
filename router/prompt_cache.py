"""What is already known of a prompt's tokens: a trie of text pieces, each with the block keys that it completes.

Owns the memory that makes a long conversation cost only its new turn. A prompt comes as pieces that were cut where
cutting is exact; the chained hash of the pieces up to one names that prefix. A node keeps only what its piece adds, so
a prefix that many prompts share is held once. Must never be the reason for other keys: with or without the cache, with
whatever was evicted, the keys of a prompt are the same.
"""

from __future__ import annotations

import secrets
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from radix.blocks import TOKEN_BYTES, hash_chunks, pack_tokens

# What CPython takes for a node beside its content (measured): table entries, the tuple, its array, its bytes, its name.
_NODE_BYTES = 320


@dataclass(slots=True)
class KnownPrefix:
    """A prompt's prefix with its tokens: `keys` of its full blocks, and the packed tokens after them.

    `names` are those of the prefix's pieces. It starts as what `TokenCache.find` returns and grows by `extend`.
    """

    names: list[int]
    keys: list[int]
    rest: bytes
    seed: int

    def tokens(self, block_size: int) -> int:
        """The length of the prefix in tokens."""
        return len(self.keys) * block_size + len(self.rest) // TOKEN_BYTES

    def append(self, ids: Sequence[int], block_size: int) -> list[int]:
        """Adds the tokens of a piece. Returns the keys of the blocks that they completed."""
        packed = self.rest + pack_tokens(ids)
        added = hash_chunks(packed, block_size * TOKEN_BYTES, self.keys[-1] if self.keys else self.seed)
        self.keys += added
        self.rest = packed[len(added) * block_size * TOKEN_BYTES :]
        return added


class TokenCache:
    """Nodes by name, least recently used first; holds about `max_bytes` of memory."""

    def __init__(self, block_size: int, max_bytes: int) -> None:
        self._block_size = block_size
        self._max_bytes = max_bytes
        self._nodes: OrderedDict[int, tuple[array[int], bytes]] = OrderedDict()
        # Names start at a secret, so that nobody can craft a prompt that takes another's name.
        self._secret = secrets.randbits(64)
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def find(self, seed: int, head: Sequence[int], pieces: Sequence[str]) -> KnownPrefix:
        """The longest known prefix of `pieces`; `len(names)` tells how many of them it covers.

        `seed` is the namespace's, `head` the tokens that stand before the text.
        """
        known = KnownPrefix([], [], b"", seed)
        known.append(head, self._block_size)
        name = self._root(seed, head)
        nodes = self._nodes
        for piece in pieces:
            name = xxh3_64_intdigest(piece.encode(), name)
            node = nodes.get(name)
            if node is None:
                break
            known.names.append(name)
            known.keys.extend(node[0])
            known.rest = node[1]
        self._touch(known.names)
        return known

    def extend(
        self, known: KnownPrefix, head: Sequence[int], pieces: Sequence[str], ids: Sequence[Sequence[int]]
    ) -> None:
        """Grows `known` by `pieces`, whose tokens are `ids`, and remembers each of them."""
        name = known.names[-1] if known.names else self._root(known.seed, head)
        for piece, piece_ids in zip(pieces, ids, strict=True):
            name = xxh3_64_intdigest(piece.encode(), name)
            added = known.append(piece_ids, self._block_size)
            known.names.append(name)
            self._store(name, array("Q", added), known.rest)
        self._touch(known.names)
        while self.bytes > self._max_bytes:
            self.bytes -= _size(*self._nodes.popitem(last=False)[1])

    def _root(self, seed: int, head: Sequence[int]) -> int:
        return xxh3_64_intdigest(pack_tokens(head), seed ^ self._secret)

    def _store(self, name: int, keys: array[int], rest: bytes) -> None:
        replaced = self._nodes.get(name)
        if replaced is not None:
            self.bytes -= _size(*replaced)
        self._nodes[name] = (keys, rest)
        self.bytes += _size(keys, rest)

    def _touch(self, names: Sequence[int]) -> None:
        # The deepest first: a node is then evicted before its parent, without which it could not be found.
        for name in reversed(names):
            if name in self._nodes:
                self._nodes.move_to_end(name)


def _size(keys: array[int], rest: bytes) -> int:
    return _NODE_BYTES + len(keys) * keys.itemsize + len(rest)
