"""Block keys: one 64-bit name for each full block of a prompt, and through it for the whole prefix up to there.

Owns the hashing contract that routers, replicas and event logs share:

    h_i = xxh3_64(tokens_i as little-endian u32, seed=h_{i-1}),   h_{-1} = namespace_seed(model, adapter, cache_salt)

Must never hash a partial block: only full blocks have keys. 64 bits are enough to route by, not to reuse KV by; a
replica compares tokens and parent before it shares a block.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

from xxhash import xxh3_64_intdigest

TOKEN_BYTES = 4


def namespace_seed(model: str, adapter: str = "", cache_salt: str = "") -> int:
    """The seed of a prompt's first block. Prompts of different namespaces never share a key."""
    # Length prefixes keep ("ab", "c") and ("a", "bc") apart.
    parts = (part.encode() for part in (model, adapter, cache_salt))
    return xxh3_64_intdigest(b"".join(len(part).to_bytes(4, "little") + part for part in parts))


def pack_tokens(tokens: Iterable[int]) -> bytes:
    """Token ids as little-endian u32, the form that is hashed. Raises OverflowError for an id outside 32 bits."""
    packed = array("I", tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def hash_chunks(data: bytes | memoryview, chunk_bytes: int, parent: int) -> list[int]:
    """Chained keys of every full `chunk_bytes` of `data`, after the block whose key is `parent`."""
    view = memoryview(data)
    starts = range(0, len(view) - chunk_bytes + 1, chunk_bytes)
    return [parent := xxh3_64_intdigest(view[start : start + chunk_bytes], parent) for start in starts]


def block_keys(tokens: Iterable[int], block_size: int, parent: int) -> list[int]:
    """Chained keys of every full block of `block_size` tokens, after the block whose key is `parent`."""
    return hash_chunks(pack_tokens(tokens), block_size * TOKEN_BYTES, parent)
