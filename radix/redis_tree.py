"""The tree in Redis: the fleet's memory of which replica holds which block.

Owns the scripts in radix/lua/ and the keys they write. Each change is one script, so it happens whole or not at all,
and leaves one entry in the log that every mirror follows (mirror.py). Must never be asked on a request's way.

Nodes are block key → parent + holders. A holder is a *slot*: one generation of one replica's residency. When a replica
restarts, clears its cache, or hands in a new block list, it gets another slot, and the old one is void at once; `sweep`
takes it out of the nodes bit by bit. Reports are fenced by (epoch, seq), replicas live under leases, in Redis' time.

All keys begin with the hash tag {radixgate:NAMESPACE}: a namespace lives on one shard of a cluster. What Redis forgets,
the replicas still know: they are asked for their block lists (publisher.py), so no persistence is needed.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from secrets import token_hex
from typing import Any

import msgspec

from radix.events import BlockStored, EventBatch, Registration, Snapshot, unpack_keys
from radix.feed import Outcome
from radix.redis_link import RedisLink, Script, run_script
from radix.tasks import end_tasks
from radix.tree_log import Entry, decode_entry, pack_events, unpack_marks

RESTORE = -1
BUCKETS = 65_536
LOG_BYTES = 32 * 1024 * 1024
# What one script does, so that it keeps Redis for two or three milliseconds; of buckets and nodes, what comes first.
PART_BLOCKS = 512
DUMP_BUCKETS, DUMP_NODES = 2048, 2048
SWEEP_NODES = 2048

OUTCOMES = {outcome.name.lower().encode(): outcome for outcome in Outcome}


class Superseded(Exception):
    """A newer incarnation of the replica has registered."""


class _Scripts(StrEnum):
    """The files of radix/lua/, but for what they share."""

    REGISTER = "register"
    LEAVE = "leave"
    APPLY = "apply"
    RESTORE_BEGIN = "restore_begin"
    RESTORE_PART = "restore_part"
    RESTORE_COMMIT = "restore_commit"
    DOUBT = "doubt"
    EXPIRE = "expire"
    SWEEP = "sweep"
    OPEN = "open"
    DUMP = "dump"


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a batch, and the number of the one that is due after it (RESTORE: a block list is wanted)."""

    outcome: Outcome
    next_seq: int


@dataclass(frozen=True, slots=True)
class Incarnation:
    """A replica as Redis knows it. `slot` 0: its block list has not come yet."""

    said: Registration
    slot: int
    next_seq: int


class RedisTree:
    """One namespace's tree. Every method raises what radix.redis_link.UNAVAILABLE lists when Redis is away or slow."""

    def __init__(self, link: RedisLink, log_bytes: int = LOG_BYTES) -> None:
        """`log_bytes` bounds the log; a mirror that lags by more reads the tree anew."""
        self.link = link
        self.prefix = f"{{radixgate:{link.namespace}}}"
        lua = files("radix") / "lua"
        common = f"local LOG_BYTES = {log_bytes}\n" + (lua / "common.lua").read_text()
        self._scripts = {name: Script(common + (lua / f"{name}.lua").read_text()) for name in _Scripts}

    # What replicas tell

    async def register(self, said: Registration) -> int:
        """A first registration, or the renewal of a lease. Returns the number of the batch that is due, or RESTORE.

        Raises Superseded when a newer incarnation is here.
        """
        lease_ms = int(said.lease_s * 1000)
        due = await self._run(_Scripts.REGISTER, said.name, said.epoch, msgspec.json.encode(said), lease_ms)
        if due is None:
            raise Superseded(f"a newer incarnation of {said.name!r} has registered")
        return int(due)

    async def leave(self, name: str, epoch: int, reason: str = "left") -> bool:
        """The incarnation is over. False when it was not here."""
        return bool(await self._run(_Scripts.LEAVE, name, epoch, reason))

    async def apply(self, batch: EventBatch) -> Applied:
        """Apply one batch, if it is the one that is due. Raises ValueError when a key is outside 64 bits."""
        cleared, events = _packed(batch.events)
        said = await self._run(_Scripts.APPLY, batch.replica, batch.epoch, batch.seq, int(cleared), events)
        return Applied(OUTCOMES[said[0]], int(said[1]))

    async def restore(self, snapshot: Snapshot) -> Outcome:
        """Make the residency what the snapshot says: in slices, and for everybody at once when the last is in.

        STALE: later batches have been applied. UNKNOWN: the incarnation must register first. Raises ValueError when a
        key is outside 64 bits.
        """
        about = (snapshot.replica, snapshot.epoch, snapshot.seq)
        token = token_hex(8)
        slot = await self._run(_Scripts.RESTORE_BEGIN, *about, token)
        if slot in OUTCOMES:
            return OUTCOMES[slot]
        parts = 0
        for part in _parts(snapshot.stored):
            if not await self._run(_Scripts.RESTORE_PART, slot, token, parts, _packed(part)[1]):
                return Outcome.UNKNOWN
            parts += 1
        return OUTCOMES[await self._run(_Scripts.RESTORE_COMMIT, *about, slot, token, parts)]

    # What routers do for all

    async def doubt(self, name: str, epoch: int) -> bool:
        """What is known of the incarnation may be wrong: the next that is taken of it is its block list.

        False when it is not here.
        """
        return bool(await self._run(_Scripts.DOUBT, name, epoch))

    async def expire(self, grace_s: float) -> list[str]:
        """End the incarnations whose lease ran out; their names. To be called at least once a second.

        If nobody did for two seconds, because Redis stood still or was away, the living get `grace_s` to renew theirs.
        """
        return [name.decode() for name in await self._run(_Scripts.EXPIRE, int(grace_s * 1000))]

    async def sweep(self, buckets: int) -> bool:
        """A slice of lazy work: free what void slots held in so many of the 65,536 buckets, fewer if they are full.
        True while more is left.
        """
        return int(await self._run(_Scripts.SWEEP, buckets, SWEEP_NODES)) > 0

    # What mirrors read

    async def open(self) -> tuple[bytes, float, list[Incarnation]]:
        """The newest log entry's id, Redis' time (Unix seconds), and the members at that very moment."""
        last, (seconds, micros), members = await self._run(_Scripts.OPEN)
        incarnations = [
            Incarnation(msgspec.json.decode(said, type=Registration), int(slot), int(due))
            for slot, due, said, _ in members
        ]
        return last, int(seconds) + int(micros) / 1e6, incarnations

    async def slots(self) -> set[int]:
        """Those in use: by members, or for block lists that are arriving. Nodes may name others, which are void."""
        used: Any = await self.link.client.hkeys(self.prefix + ":slots")
        return {int(slot) for slot in used}

    async def nodes(self) -> dict[bytes, bytearray]:
        """All nodes: the marks of their holders (`unpack_marks`), and for each such group packed pairs of key and
        parent; a first block is its own parent.

        Not of one moment: it is right together with the log from before its beginning.
        """
        found: defaultdict[bytes, bytearray] = defaultdict(bytearray)
        ahead: asyncio.Task[Any] | None = self._read_ahead(0)
        try:
            while ahead is not None:
                start, buckets = await ahead
                ahead = self._read_ahead(start) if start < BUCKETS else None
                await asyncio.sleep(0)  # it is sent, so that Redis works while this process does
                for number, bucket in zip(buckets[0::2], buckets[1::2], strict=True):
                    low = number.to_bytes(2, "little")
                    for high, node in zip(bucket[0::2], bucket[1::2], strict=True):
                        found[node[8:]] += low + high + node[:8]
        finally:
            if ahead is not None:
                await end_tasks(ahead)
        return found

    def _read_ahead(self, start: int) -> asyncio.Task[Any]:
        return asyncio.create_task(self._run(_Scripts.DUMP, start, DUMP_BUCKETS, DUMP_NODES))

    async def dump(self, slot: int | None = None) -> AsyncIterator[tuple[int, bytes]]:
        """The nodes of each slot, or of that one, in many pieces of packed pairs as those of `nodes`."""
        for marks, pairs in (await self.nodes()).items():
            for holder in unpack_marks(marks):
                if slot is None or slot == holder:
                    yield holder, bytes(pairs)

    async def read_log(self, after: bytes, count: int, block_ms: int | None = None) -> list[Entry]:
        """Up to `count` entries after that id, waiting up to `block_ms` for the first.

        Raises ValueError for one that no script wrote.
        """
        log = self.prefix + ":log"
        found: Any = await self.link.client.xread({log: after}, count=count, block=block_ms)
        return [decode_entry(entry_id, fields) for _, entries in found or () for entry_id, fields in entries]

    async def last(self) -> bytes:
        """The newest log entry's id."""
        last: Any = await self.link.client.hget(self.prefix + ":meta", "last")
        return last or b"0-0"

    async def residency(self, name: str) -> tuple[int, set[int]] | None:
        """The number of the batch that is due, and the keys that the replica holds; None when it is not registered."""
        found = await self._find(name)
        if found is None:
            return None
        keys: set[int] = set()
        if found.slot:
            async for _, pairs in self.dump(found.slot):
                keys.update(unpack_keys(pairs)[0::2])
        return found.next_seq, keys

    async def _find(self, name: str) -> Incarnation | None:
        _, _, members = await self.open()
        return next((member for member in members if member.said.name == name), None)

    async def _run(self, name: _Scripts, *args: str | bytes | int) -> Any:
        # The first key never exists, the second does: so a cluster that moves them refuses, and the tree is not forked.
        keys = [self.prefix, f"{self.prefix}:meta"]
        return await run_script(self.link.client, self._scripts[name], keys, args)


def _packed(events: Sequence[Any]) -> tuple[bool, bytes]:
    try:
        return pack_events(events)
    except OverflowError as error:
        raise ValueError(f"a block key is outside 64 bits: {error}") from None


def _parts(stored: Sequence[BlockStored]) -> Iterator[list[BlockStored]]:
    """The same blocks in slices of about PART_BLOCKS; long runs are cut."""
    part: list[BlockStored] = []
    room = PART_BLOCKS
    for event in stored:
        parent, at = event.parent, 0
        while at < len(event.packed):
            piece = event.packed[at : at + 8 * room]
            part.append(BlockStored(parent, piece))
            parent = unpack_keys(piece[-8:])[0]
            at += len(piece)
            room -= len(piece) // 8
            if room <= 0:
                yield part
                part, room = [], PART_BLOCKS
    if part:
        yield part
