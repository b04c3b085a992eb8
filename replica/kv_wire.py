"""vLLM's KV events as they go over the wire, so that routers made for vLLM can read ours.

Owns the form of the events: which fields, under which names, and how the blocks of a step become few events. Must never
know a socket, nor decide who reads what.

A batch is the MessagePack array [time, events, data parallel rank]; each event is a map tagged "type", as vLLM writes
them since 0.24 (June 2026); before, an event was an array with its fields in a fixed order. No form suits every reader:
typed readers, such as vLLM's own examples, take either maps or arrays. Maps it is, for every reader that keeps up with
vLLM has to take them (llm-d and Dynamo take both), and what is named can be left out or added without harm.

- Hashes are our 64-bit block keys, as unsigned integers. To a reader they are names and mean nothing else.
- A block's identity beyond its tokens is in `lora_name` and in `extra_keys`, a list for each block: the adapter, and
  with the first block of a prompt the cache salt.
- A block is stored once here, however many prompts share it, so removing it once removes it.
"""

from __future__ import annotations

import struct

import msgspec

from radix.blocks import TOKEN_BYTES
from replica.blocks import Namespace

MEDIUM = "GPU"


class Stored(msgspec.Struct, tag="BlockStored", omit_defaults=True, frozen=True, gc=False):
    """Blocks that follow each other, the first one after `parent_block_hash` (None: at the start of a prompt)."""

    block_hashes: tuple[int, ...]
    parent_block_hash: int | None
    token_ids: tuple[int, ...]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: tuple[tuple[str, ...] | None, ...] | None = None


class Removed(msgspec.Struct, tag="BlockRemoved", omit_defaults=True, frozen=True, gc=False):
    block_hashes: tuple[int, ...]
    medium: str | None


class Cleared(msgspec.Struct, tag="AllBlocksCleared", omit_defaults=True, frozen=True, gc=False):
    """Everything that was stored is gone."""


KvEvent = Stored | Removed | Cleared


class KvEventBatch(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one step did. `ts` in seconds since 1970. One replica is one rank: 0, never left out."""

    ts: float
    events: list[KvEvent]
    data_parallel_rank: int = 0


encode_batch = msgspec.msgpack.Encoder().encode


class KvEventLog:
    """A witness of the block pool: the events since the last `drain`, in true order."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._events: list[KvEvent] = []
        self._stored: list[int] = []
        self._packed: list[bytes] = []
        self._parent: int | None = None
        self._namespace: Namespace | None = None
        self._removed: list[int] = []

    def stored(self, parent: int | None, key: int, packed: bytes, namespace: Namespace) -> None:
        self._end_removed()
        if not self._stored or self._stored[-1] != parent:
            self._end_stored()
            self._parent, self._namespace = parent, namespace
        self._stored.append(key)
        self._packed.append(packed)

    def removed(self, key: int) -> None:
        self._end_stored()
        self._removed.append(key)

    def cleared(self) -> None:
        # What this step had done before is void for every reader.
        self._stored, self._packed, self._removed = [], [], []
        self._events = [Cleared()]

    def drain(self) -> list[KvEvent]:
        self._end_stored()
        self._end_removed()
        events, self._events = self._events, []
        return events

    def _end_stored(self) -> None:
        if not self._stored:
            return
        assert self._namespace is not None
        self._events.append(
            Stored(
                block_hashes=tuple(self._stored),
                parent_block_hash=self._parent,
                token_ids=_tokens(b"".join(self._packed)),
                block_size=self._block_size,
                lora_id=None,
                medium=MEDIUM,
                lora_name=self._namespace.adapter or None,
                extra_keys=_extra_keys(self._namespace, len(self._stored), starts=self._parent is None),
            )
        )
        self._stored, self._packed = [], []

    def _end_removed(self) -> None:
        if self._removed:
            self._events.append(Removed(tuple(self._removed), MEDIUM))
            self._removed = []


def _tokens(packed: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(packed) // TOKEN_BYTES}I", packed)


def _extra_keys(namespace: Namespace, blocks: int, starts: bool) -> tuple[tuple[str, ...] | None, ...] | None:
    """What else, beside the tokens, tells each block from others. `starts`: the first one begins a prompt."""
    each = (namespace.adapter,) if namespace.adapter else ()
    first = (*each, namespace.cache_salt) if namespace.cache_salt and starts else each
    return (first or None, *[each or None] * (blocks - 1)) if first or each else None
