"""The block pool: which physical KV blocks hold what, and who uses them. Which are given up first, an Eviction decides.

Owns every physical block of the replica. After each call:

- blank + evictable + referenced blocks = all blocks, and no reference count is negative;
- a resident block (one with a key) is found under its key, and no content is resident twice;
- residency is prefix-closed: a resident block's parent is resident, and whoever references a block references its
  parent; so only a leaf can be given up;
- the eviction knows exactly the evictable blocks, those that are resident and not referenced.

Must never share a block by its key alone: 64 bits can collide, by chance or by craft, so tokens and parent are
compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Protocol

from radix.blocks import TOKEN_BYTES, hash_chunks, namespace_seed
from radix.events import BlockStored, Event, pack_keys
from replica.eviction import Eviction, LeastRecent
from replica.journal import EventLog
from replica.reuse_runs import Visit

PROBE_COST = 16
"""Looking at one physical block drawn at random costs as much as listing so many keys (measured)."""


@dataclass(frozen=True)
class Namespace:
    """Where a prompt lives. Prompts of different namespaces never share a block."""

    model: str
    adapter: str = ""
    cache_salt: str = ""

    @cached_property
    def key(self) -> int:
        """What stands for the parent's key in the key of a first block."""
        return namespace_seed(self.model, self.adapter, self.cache_salt)


class Block:
    """One physical block. With a key it is resident and may be shared; `packed` and `parent` say what it holds."""

    __slots__ = ("index", "key", "packed", "parent", "refs")

    def __init__(self, index: int) -> None:
        self.index = index
        self.refs = 0
        self.key: int | None = None
        self.packed = b""
        self.parent: Block | Namespace | None = None

    def __repr__(self) -> str:
        return f"Block({self.index}, refs={self.refs}, key={self.key})"


@dataclass(slots=True)
class BlockTable:
    """The blocks of one sequence, in order. The first `stored` are resident; unless `sharing`, no more will be.

    `visit` is what the eviction knows of it.
    """

    namespace: Namespace
    blocks: list[Block] = field(default_factory=list)
    stored: int = 0
    sharing: bool = True
    visit: Visit = field(default_factory=Visit)


class Witness(Protocol):
    """Is told at once, in true order, what becomes resident and what ceases to be. Must neither wait nor raise."""

    def stored(self, parent: int | None, key: int, packed: bytes, namespace: Namespace) -> None: ...

    def removed(self, key: int) -> None: ...

    def cleared(self) -> None: ...


KeyFunction = Callable[[bytes, int], int]


def block_key(packed: bytes, parent: int) -> int:
    """The key of one full block of packed tokens after the block (or namespace) whose key is `parent`."""
    return hash_chunks(packed, len(packed), parent)[0]


class BlockPool:
    """`blocks` physical blocks of `block_size` tokens each. Tokens come packed, as little-endian u32.

    Without `sharing` nothing becomes resident: every prompt is computed anew. `eviction` (without one, what was used
    least recently goes first) must be this pool's alone; `clock` is what it hears of time, in seconds.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        key_function: KeyFunction = block_key,
        witness: Witness | None = None,
        sharing: bool = True,
        eviction: Eviction | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if blocks < 1 or block_size < 1:
            raise ValueError("a block pool needs at least one block of at least one token")
        self.block_size = block_size
        self.sharing = sharing
        self._all = [Block(index) for index in range(blocks)]
        self._blank = self._all[::-1]
        self._evictable = 0
        self._resident: dict[int, Block] = {}
        self._log = EventLog()
        self._witness = witness
        self._key_function = key_function
        self._eviction = eviction or LeastRecent()
        self._clock = clock
        self._block_bytes = block_size * TOKEN_BYTES

    @property
    def total(self) -> int:
        return len(self._all)

    @property
    def resident(self) -> int:
        """Blocks that a later prompt could share."""
        return len(self._resident)

    @property
    def allocatable(self) -> int:
        """Blocks nobody references, resident ones included."""
        return len(self._blank) + self._evictable

    @property
    def referenced(self) -> int:
        return self.total - self.allocatable

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def open(self, namespace: Namespace, packed: bytes | bytearray) -> BlockTable:
        """A table that references the longest resident prefix of the tokens, short of the last token.

        One token at least is left to compute, for it is the one that yields the next.
        """
        blocks: list[Block] = []
        parent: Block | Namespace = namespace
        key = namespace.key
        for end in range(self._block_bytes, len(packed), self._block_bytes):
            content = bytes(packed[end - self._block_bytes : end])
            key = self._key_function(content, key)
            block = self._resident.get(key)
            if block is None or not _holds(block, parent, content):
                break
            self._reference(block)
            blocks.append(block)
            parent = block
        visit = self._eviction.used([block.index for block in blocks], self._clock())
        return BlockTable(namespace, blocks, len(blocks), self.sharing, visit)

    def grow(self, table: BlockTable, tokens: int, spare: int = 0) -> bool:
        """Makes room for `tokens` tokens in all, if that leaves `spare` blocks allocatable; else changes nothing."""
        missing = self.blocks_for(tokens) - len(table.blocks)
        if missing > 0 and missing + spare > self.allocatable:
            return False
        if not table.visit.ran:
            self._eviction.ran(table.visit, self._clock())
        if missing > 0:
            table.blocks += self._take(missing)
        return True

    def store(self, table: BlockTable, packed: bytes | bytearray, computed: int) -> None:
        """Makes the table's full blocks among its first `computed` tokens resident.

        Content that became resident elsewhere in the meantime is shared from there, and this table's own copy goes
        back. A block whose key is taken by other content stays private, and so does everything after it.
        """
        full, size = computed // self.block_size, self._block_bytes
        first = position = table.stored
        parent = table.blocks[position - 1] if position else table.namespace
        ancestor = parent.key if isinstance(parent, Block) else None
        while table.sharing and position < full:
            content = bytes(packed[position * size : (position + 1) * size])
            key = self._key_function(content, table.namespace.key if ancestor is None else ancestor)
            holder = self._resident.get(key)
            if holder is None:
                holder = table.blocks[position]
                holder.key, holder.packed, holder.parent = key, content, parent
                self._resident[key] = holder
                self._log.stored(ancestor, key)
                if self._witness is not None:
                    self._witness.stored(ancestor, key, content, table.namespace)
            elif _holds(holder, parent, content):
                self._tell_stored(table, first, position)
                self._share(table, position, holder)
                first = position + 1
            else:
                table.sharing = False
                break
            parent, ancestor = holder, key
            position += 1
        table.stored = position
        self._tell_stored(table, first, position)

    def release(self, table: BlockTable) -> None:
        """Lets go of the table's blocks, tail first. Resident ones stay resident until their room is needed."""
        if not table.blocks:
            return
        freed: list[int] = []
        for block in reversed(table.blocks):
            block.refs -= 1
            if block.refs == 0:
                if block.key is None:
                    self._blank.append(block)
                else:
                    freed.append(block.index)
        freed.reverse()
        self._evictable += len(freed)
        table.blocks.clear()
        table.stored = 0
        self._eviction.freed(table.visit, freed, self._clock())

    def clear(self) -> None:
        """Forgets every resident block. Raises RuntimeError while a table still references one."""
        if self.referenced:
            raise RuntimeError("blocks in use cannot be cleared; release every table first")
        if not self._resident:
            return
        for block in self._resident.values():
            block.key, block.packed, block.parent = None, b"", None
            self._blank.append(block)
        self._resident.clear()
        self._evictable = 0
        self._eviction.cleared()
        self._log.cleared()
        if self._witness is not None:
            self._witness.cleared()

    def drain(self) -> tuple[Event, ...]:
        """What became resident, and what ceased to be, since the last drain, in true order."""
        return self._log.drain()

    def snapshot(self) -> tuple[BlockStored, ...]:
        """Everything resident, as chains; parents come before their children."""
        children: dict[Block, list[Block]] = {}
        roots: list[Block] = []
        for block in self._resident.values():
            if isinstance(block.parent, Block):
                children.setdefault(block.parent, []).append(block)
            else:
                roots.append(block)
        chains: list[BlockStored] = []
        pending = roots
        while pending:
            block = pending.pop()
            parent = block.parent.key if isinstance(block.parent, Block) else None
            keys = [_key(block)]
            while len(following := children.get(block, [])) == 1:
                block = following[0]
                keys.append(_key(block))
            chains.append(BlockStored(parent, pack_keys(keys)))
            pending.extend(following)
        return tuple(chains)

    def holds(self, keys: Iterable[int]) -> list[bool]:
        """For each key: whether that block is resident."""
        return [key in self._resident for key in keys]

    def sample(self, count: int, rng: Random) -> list[int]:
        """The keys of `count` different resident blocks drawn at random, or of all if there are fewer.

        Physical blocks are looked at until enough of them turned out to be resident; only where so few are that listing
        them is less work, they are listed. So the work goes by the root of count x total at the most, not by `total`.
        """
        if self.resident**2 < PROBE_COST * count * self.total:
            return rng.sample(list(self._resident), min(count, self.resident))
        keys: set[int] = set()
        while len(keys) < count:
            key = self._all[int(rng.random() * len(self._all))].key
            if key is not None:
                keys.add(key)
        return list(keys)

    def check_integrity(self) -> None:
        """Raises AssertionError when an invariant of this file does not hold. Linear in the number of blocks."""
        blank = {block.index for block in self._blank}
        assert len(blank) == len(self._blank)
        evictable = {block.index for block in self._all if block.refs == 0 and block.key is not None}
        assert len(evictable) == self._evictable
        assert evictable == self._eviction.idle(), "the eviction is mistaken in what can be given up"
        for block in self._all:
            assert block.refs >= 0, f"{block} has a negative reference count"
            assert (block.refs == 0) == (block.index in blank or block.index in evictable), (
                f"{block} is lost or free in use"
            )
            if block.key is not None:
                assert block.index not in blank, f"{block} is resident, yet blank"
                assert self._resident.get(block.key) is block, f"{block} is not found under its key"
                assert block.key == self._key_function(block.packed, _key(block.parent))
        assert len(self._resident) == sum(block.key is not None for block in self._all)
        for block in self._resident.values():
            if isinstance(block.parent, Block):
                assert self._resident.get(_key(block.parent)) is block.parent, f"the parent of {block} is gone"
                assert block.refs == 0 or block.parent.refs > 0, f"{block} is in use, its parent is not"

    def _take(self, count: int) -> list[Block]:
        """So many blocks to write to: blank ones, and what the eviction gives up."""
        taken = [self._blank.pop() for _ in range(min(count, len(self._blank)))]
        if len(taken) < count:
            victims = self._eviction.victims(count - len(taken), self._clock())
            self._evictable -= len(victims)
            taken += [self._vacate(index) for index in victims]
        for block in taken:
            block.refs = 1
        return taken

    def _vacate(self, index: int) -> Block:
        block = self._all[index]
        key = block.key
        assert key is not None
        assert not block.refs
        del self._resident[key]
        self._log.removed(key)
        if self._witness is not None:
            self._witness.removed(key)
        block.key, block.packed, block.parent = None, b"", None
        return block

    def _share(self, table: BlockTable, position: int, holder: Block) -> None:
        """Puts the resident block in the place of the table's own copy."""
        now = self._clock()
        self._reference(holder)
        self._eviction.ran(self._eviction.used([holder.index], now), now)
        own, table.blocks[position] = table.blocks[position], holder
        own.refs = 0
        self._blank.append(own)

    def _tell_stored(self, table: BlockTable, first: int, end: int) -> None:
        """The eviction hears that the blocks from `first` until `end` became resident."""
        if first < end:
            fresh = table.blocks[first:end]
            parent = table.blocks[first - 1].index if first else None
            keys = [block.key for block in fresh if block.key is not None]
            self._eviction.stored(table.visit, [block.index for block in fresh], parent, keys, self._clock())

    def _reference(self, block: Block) -> None:
        if block.refs == 0:
            self._evictable -= 1
        block.refs += 1


def _holds(block: Block, parent: Block | Namespace, packed: bytes) -> bool:
    return block.packed == packed and block.parent == parent


def _key(parent: Block | Namespace | None) -> int:
    """The key of a resident block or a namespace."""
    assert parent is not None
    assert parent.key is not None
    return parent.key
