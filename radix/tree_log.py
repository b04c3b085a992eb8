"""What the tree in Redis is told and what it logs: block events in the form that Lua can read, and log entries.

Owns both forms. Must never do I/O.

Each event is a letter (s: stored, f: stored as a prompt's first blocks, r: removed), the number of keys (u32), for s
the parent's key, and the keys, all little-endian. What came before a clearing in the same batch is left out: nothing of
it is there any more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from radix.events import (
    KEY_BYTES,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Event,
    Registration,
    pack_keys,
    unpack_keys,
)
from radix.index import PrefixIndex

STORED, STORED_FIRST, REMOVED = b"s", b"f", b"r"
COUNT = struct.Struct("<I")
MARK = struct.Struct("<H")


def pack_events(events: Iterable[Event]) -> tuple[bool, bytes]:
    """Whether all blocks were cleared first, and the events from there on. Raises OverflowError for a parent outside 64
    bits, ValueError for what is not whole keys.
    """
    cleared = False
    parts: list[bytes] = []
    for event in events:
        if not isinstance(event, AllBlocksCleared) and len(event.packed) % KEY_BYTES:
            raise ValueError(f"{len(event.packed)} bytes are not whole block keys")
        match event:
            case BlockStored(parent, packed):
                count = COUNT.pack(len(packed) // KEY_BYTES)
                parts += (STORED_FIRST, count) if parent is None else (STORED, count, pack_keys((parent,)))
                parts.append(packed)
            case BlockRemoved(packed):
                parts += (REMOVED, COUNT.pack(len(packed) // KEY_BYTES), packed)
            case AllBlocksCleared():
                cleared = True
                parts.clear()
    return cleared, b"".join(parts)


def apply_events(index: PrefixIndex, rid: int, body: bytes) -> int:
    """Make the index follow the packed events; returns how many blocks they named. Raises ValueError for nonsense."""
    at = total = 0
    while at < len(body):
        kind = body[at : at + 1]
        (count,) = COUNT.unpack_from(body, at + 1)
        at += 1 + COUNT.size
        parent = None
        if kind == STORED:
            (parent,) = unpack_keys(body[at : at + KEY_BYTES])
            at += KEY_BYTES
        keys = unpack_keys(body[at : at + count * KEY_BYTES])
        at += count * KEY_BYTES
        total += count
        if kind == REMOVED:
            index.remove(rid, keys)
        else:
            index.store(rid, parent, keys)
    return total


def unpack_marks(marks: bytes) -> list[int]:
    """The slots that hold a node: two bytes for each."""
    return [slot for (slot,) in MARK.iter_unpack(marks)]


@dataclass(frozen=True, slots=True)
class Joined:
    """An incarnation registered, or changed its registration."""

    said: Registration


@dataclass(frozen=True, slots=True)
class Reported:
    """A batch was applied. Another slot than before: all blocks were cleared first."""

    name: str
    slot: int
    epoch: int
    seq: int
    events: bytes


@dataclass(frozen=True, slots=True)
class Gathered:
    """A part of a block list arrived under a slot that nobody has yet."""

    slot: int
    events: bytes


@dataclass(frozen=True, slots=True)
class Restored:
    """What gathered under the slot is what the replica holds, just before batch `seq`."""

    name: str
    slot: int
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class Left:
    """The incarnation is over."""

    name: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Freed:
    """No node names the slot any more; it may be given to somebody else."""

    slot: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """A newer version writes to this namespace."""

    kind: str


Change = Joined | Reported | Gathered | Restored | Left | Freed | Unknown


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log. `after` is the id of the entry before it, so that a gap shows. `at` is Redis' time, Unix
    seconds.
    """

    id: bytes
    after: bytes
    change: Change

    @property
    def at(self) -> float:
        return int(self.id.partition(b"-")[2]) / 1e6


def decode_entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    """Raises ValueError for what no script wrote."""
    try:
        return Entry(entry_id, fields[b"a"], _change(fields[b"h"].decode(), fields[b"e"]))
    except (KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"log entry {entry_id!r} is malformed: {error!r}") from None


def _change(head: str, body: bytes) -> Change:
    """A head is the kind, numbers, and at last a name, which may hold blanks."""
    kind, _, rest = head.partition(" ")
    match kind:
        case "batch":
            slot, epoch, seq, name = rest.split(" ", 3)
            return Reported(name, int(slot), int(epoch), int(seq), body)
        case "part":
            return Gathered(int(rest), body)
        case "join":
            return Joined(msgspec.json.decode(body, type=Registration))
        case "slot":
            slot, epoch, seq, name = rest.split(" ", 3)
            return Restored(name, int(slot), int(epoch), int(seq))
        case "leave":
            epoch, name = rest.split(" ", 1)
            return Left(name, int(epoch), body.decode())
        case "free":
            return Freed(int(rest))
    return Unknown(kind)
