"""What a replica tells the fleet about itself and its blocks, and the native wire format (msgpack).

Owns the events, the batch that carries them, the snapshot that repairs any loss, and the registration of a replica.
Must never interpret them: `feed.py` fences and applies.

Wire: msgpack arrays; block keys travel as packed little-endian u64 in one binary field, 8 bytes a key, so that readers
without 64-bit integers (Lua in Redis) can handle them and a batch decodes at memory speed.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import TypeVar

import msgspec

KEY_BYTES = 8

Message = TypeVar("Message")


class BlockStored(msgspec.Struct, frozen=True, array_like=True, tag="stored"):
    """Blocks became resident, each the child of the one before; `parent` precedes the first (None: a prompt's first
    block).
    """

    parent: int | None
    packed: bytes

    @property
    def keys(self) -> list[int]:
        return unpack_keys(self.packed)


class BlockRemoved(msgspec.Struct, frozen=True, array_like=True, tag="removed"):
    """The last physical copy of each block is gone, in this order."""

    packed: bytes

    @property
    def keys(self) -> list[int]:
        return unpack_keys(self.packed)


class AllBlocksCleared(msgspec.Struct, frozen=True, array_like=True, tag="cleared"):
    """Nothing is resident any more."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(msgspec.Struct, frozen=True, array_like=True):
    """One engine step's events, in true order. `epoch` is new at each start of the replica, `seq` counts from 0
    without gaps.
    """

    replica: str
    epoch: int
    seq: int
    events: tuple[Event, ...]


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """Everything resident just before batch `seq`: parents come before their children."""

    replica: str
    epoch: int
    seq: int
    stored: tuple[BlockStored, ...]


class Registration(msgspec.Struct, frozen=True, omit_defaults=True):
    """A replica's account of itself, as JSON: sent at each renewal of its lease, and answered on request.

    `tokenizer` is the directory of tokenizer.json as the replica sees it, `tokenizer_fingerprint` names its content
    (GET /radixgate/tokenizer hands it out); both empty when prompts cannot be tokenized elsewhere. `capacity_blocks`
    counts KV blocks, `block_size` tokens.
    """

    name: str
    url: str
    epoch: int
    models: tuple[str, ...]
    block_size: int
    capacity_blocks: int
    tokenizer: str = ""
    tokenizer_fingerprint: str = ""
    max_model_len: int = 0
    lease_s: float = 10.0


def pack_keys(keys: Iterable[int]) -> bytes:
    """Raises OverflowError for a key outside 64 bits."""
    packed = array("Q", keys)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_keys(packed: bytes) -> list[int]:
    """Raises ValueError when `packed` is not a whole number of keys."""
    keys = array("Q")
    keys.frombytes(packed)
    if sys.byteorder == "big":
        keys.byteswap()
    return keys.tolist()


def encode(message: EventBatch | Snapshot) -> bytes:
    return msgspec.msgpack.encode(message)


def decode_batch(data: bytes) -> EventBatch:
    """Raises msgspec.DecodeError (a ValueError) when `data` is not a batch of whole keys."""
    batch = _decode(data, EventBatch)
    for event in batch.events:
        _check(event)
    return batch


def decode_snapshot(data: bytes) -> Snapshot:
    """Raises msgspec.DecodeError (a ValueError) when `data` is not a snapshot of whole keys."""
    snapshot = _decode(data, Snapshot)
    for event in snapshot.stored:
        _check(event)
    return snapshot


def _decode(data: bytes, kind: type[Message]) -> Message:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"the message is malformed: {error}") from None


def _check(event: Event) -> None:
    if not isinstance(event, AllBlocksCleared) and len(event.packed) % KEY_BYTES:
        raise msgspec.DecodeError(f"block keys must be packed as {KEY_BYTES} bytes each, got {len(event.packed)} bytes")
    if isinstance(event, BlockStored) and event.parent is not None and event.parent < 0:
        raise msgspec.DecodeError(f"a parent is a key of 64 bits, not {event.parent}")
