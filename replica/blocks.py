"""The block pool: which physical KV blocks hold what, who uses them, and which are given up first.

Owns every physical block of the replica. After each call:

- blank + evictable + referenced blocks = all blocks, and no reference count is negative;
- a resident block (one with a key) is found under its key, and no content is resident twice;
- residency is prefix-closed: a resident block's parent is resident, and whoever references a block references its
  parent;
- among the evictable blocks, children come before their parents, so giving up the first one is always leaf-first.

The last one needs no bookkeeping: a table references its whole prefix and lets go of its tail first, so a parent
becomes evictable after its children, each time.

Must never share a block by its key alone: 64 bits can collide, by chance or by craft, so tokens and parent are
compared.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Protocol

from radix.blocks import TOKEN_BYTES, hash_chunks, namespace_seed
from radix.events import BlockStored, Event, pack_keys
from replica.journal import EventLog

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
    """The blocks of one sequence, in order. The first `stored` are resident; unless `sharing`, no more will be."""

    namespace: Namespace
    blocks: list[Block] = field(default_factory=list)
    stored: int = 0
    sharing: bool = True


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

    Without `sharing` nothing becomes resident: every prompt is computed anew.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        key_function: KeyFunction = block_key,
        witness: Witness | None = None,
        sharing: bool = True,
    ) -> None:
        if blocks < 1 or block_size < 1:
            raise ValueError("a block pool needs at least one block of at least one token")
        self.block_size = block_size
        self.sharing = sharing
        self._all = [Block(index) for index in range(blocks)]
        self._blank = self._all[::-1]
        self._evictable: OrderedDict[int, Block] = OrderedDict()
        self._resident: dict[int, Block] = {}
        self._log = EventLog()
        self._witness = witness
        self._key_function = key_function
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
        return len(self._blank) + len(self._evictable)

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
        table = BlockTable(namespace, sharing=self.sharing)
        parent: Block | Namespace = namespace
        for end in range(self._block_bytes, len(packed), self._block_bytes):
            block = self._find(parent, bytes(packed[end - self._block_bytes : end]))
            if block is None:
                break
            self._reference(block)
            table.blocks.append(block)
            parent = block
        table.stored = len(table.blocks)
        return table

    def grow(self, table: BlockTable, tokens: int, spare: int = 0) -> bool:
        """Makes room for `tokens` tokens in all, if that leaves `spare` blocks allocatable; else changes nothing."""
        missing = self.blocks_for(tokens) - len(table.blocks)
        if missing <= 0:
            return True
        if missing + spare > self.allocatable:
            return False
        table.blocks.extend(self._take() for _ in range(missing))
        return True

    def store(self, table: BlockTable, packed: bytes | bytearray, computed: int) -> None:
        """Makes the table's full blocks among its first `computed` tokens resident.

        Content that became resident elsewhere in the meantime is shared from there, and this table's own copy goes
        back. A block whose key is taken by other content stays private, and so does everything after it.
        """
        while table.sharing and table.stored < computed // self.block_size:
            position = table.stored
            block = table.blocks[position]
            parent = table.blocks[position - 1] if position else table.namespace
            content = bytes(packed[position * self._block_bytes : (position + 1) * self._block_bytes])
            key = self._key_function(content, _key(parent))
            holder = self._resident.get(key)
            if holder is None:
                block.key, block.packed, block.parent = key, content, parent
                self._resident[key] = block
                ancestor = parent.key if isinstance(parent, Block) else None
                self._log.stored(ancestor, key)
                if self._witness is not None:
                    self._witness.stored(ancestor, key, content, table.namespace)
            elif _holds(holder, parent, content):
                self._reference(holder)
                table.blocks[position] = holder
                self._let_go(block)
            else:
                table.sharing = False
                return
            table.stored += 1

    def release(self, table: BlockTable) -> None:
        """Lets go of the table's blocks, tail first. Resident ones stay resident until their room is needed."""
        while table.blocks:
            self._let_go(table.blocks.pop())
        table.stored = 0

    def clear(self) -> None:
        """Forgets every resident block. Raises RuntimeError while a table still references one."""
        if self.referenced:
            raise RuntimeError("blocks in use cannot be cleared; release every table first")
        if not self._resident:
            return
        for block in self._evictable.values():
            block.key, block.packed, block.parent = None, b"", None
            self._blank.append(block)
        self._evictable.clear()
        self._resident.clear()
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
        blank, evictable = {block.index for block in self._blank}, set(self._evictable)
        assert len(blank) == len(self._blank)
        assert not blank & evictable, "a block is both blank and evictable"
        for block in self._all:
            assert block.refs >= 0, f"{block} has a negative reference count"
            assert (block.refs == 0) == (block.index in blank or block.index in evictable), (
                f"{block} is lost or free in use"
            )
            assert (block.key is None) or block.index not in blank, f"{block} is resident, yet blank"
            assert (block.key is not None) or block.index not in evictable, f"{block} is evictable, yet not resident"
            if block.key is not None:
                assert self._resident.get(block.key) is block, f"{block} is not found under its key"
                assert block.key == self._key_function(block.packed, _key(block.parent))
        assert len(self._resident) == sum(block.key is not None for block in self._all)
        given_up: set[Block] = set()
        for block in self._evictable.values():
            assert block.parent not in given_up, f"{block} would be given up after its parent"
            given_up.add(block)
        for block in self._resident.values():
            if isinstance(block.parent, Block):
                assert self._resident.get(_key(block.parent)) is block.parent, f"the parent of {block} is gone"
                assert block.refs == 0 or block.parent.refs > 0, f"{block} is in use, its parent is not"

    def _find(self, parent: Block | Namespace, packed: bytes) -> Block | None:
        block = self._resident.get(self._key_function(packed, _key(parent)))
        return block if block is not None and _holds(block, parent, packed) else None

    def _take(self) -> Block:
        if self._blank:
            block = self._blank.pop()
        else:
            _, block = self._evictable.popitem(last=False)
            key = _key(block)
            del self._resident[key]
            self._log.removed(key)
            if self._witness is not None:
                self._witness.removed(key)
            block.key, block.packed, block.parent = None, b"", None
        block.refs = 1
        return block

    def _reference(self, block: Block) -> None:
        if block.refs == 0:
            del self._evictable[block.index]
        block.refs += 1

    def _let_go(self, block: Block) -> None:
        block.refs -= 1
        if block.refs == 0:
            if block.key is None:
                self._blank.append(block)
            else:
                self._evictable[block.index] = block


def _holds(block: Block, parent: Block | Namespace, packed: bytes) -> bool:
    return block.packed == packed and block.parent == parent


def _key(parent: Block | Namespace | None) -> int:
    """The key of a resident block or a namespace."""
    assert parent is not None
    assert parent.key is not None
    return parent.key
