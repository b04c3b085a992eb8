"""The block pool keeps its books, tells the truth in its event log, and never shares what is not the same."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from radix.blocks import block_keys, pack_tokens
from radix.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, pack_keys
from replica.blocks import BlockPool, BlockTable, KeyFunction, Namespace, block_key
from replica.reuse import EVICTIONS, make_eviction
from tests.replica.replay import Replay

SALTS = (Namespace("m"), Namespace("m", cache_salt="a"))


def fill(pool: BlockPool, tokens: list[int], namespace: Namespace = SALTS[0]) -> BlockTable:
    """A table with every block computed."""
    table = pool.open(namespace, pack_tokens(tokens))
    assert pool.grow(table, len(tokens))
    pool.store(table, pack_tokens(tokens), len(tokens))
    return table


def colliding(packed: bytes, parent: int) -> int:
    """A key function so weak that different prompts often share a key."""
    return block_key(packed, parent) % 7


class Told:
    """Residency as a witness hears of it, at once."""

    def __init__(self) -> None:
        self.replay = Replay()

    def stored(self, parent: int | None, key: int, packed: bytes, namespace: Namespace) -> None:
        self.replay.apply([BlockStored(parent, pack_keys([key]))])

    def removed(self, key: int) -> None:
        self.replay.apply([BlockRemoved(pack_keys([key]))])

    def cleared(self) -> None:
        self.replay.apply([AllBlocksCleared()])


@pytest.mark.parametrize("eviction", EVICTIONS)
@pytest.mark.parametrize("key_function", [block_key, colliding])
def test_pool_as_a_state_machine(key_function: KeyFunction, eviction: str) -> None:
    class PoolMachine(RuleBasedStateMachine):
        tables = Bundle("tables")

        def __init__(self) -> None:
            super().__init__()
            self.now = 0.0
            self.told = Told()
            self.pool = BlockPool(
                blocks=9,
                block_size=2,
                key_function=key_function,
                witness=self.told,
                eviction=make_eviction(eviction, 9),
                clock=lambda: self.now,
            )
            self.replay = Replay()
            self.held: dict[int, tuple[BlockTable, list[int]]] = {}
            self.content: dict[int, tuple[Namespace, tuple[int, ...]]] = {}  # physical block -> the prefix it ends

        @rule(
            target=tables,
            tokens=st.lists(st.integers(0, 1), min_size=1, max_size=10),
            namespace=st.sampled_from(SALTS),
            spare=st.integers(0, 2),
        )
        def open(self, tokens: list[int], namespace: Namespace, spare: int) -> object:
            table = self.pool.open(namespace, pack_tokens(tokens))
            assert table.stored * 2 < len(tokens), "at least one token is left to compute"
            for position, block in enumerate(table.blocks):
                prefix = tuple(tokens[: 2 * (position + 1)])
                assert self.content[block.index] == (namespace, prefix), "shared a block of another prefix"
            free = self.pool.allocatable
            missing = self.pool.blocks_for(len(tokens)) - len(table.blocks)
            if not self.pool.grow(table, len(tokens), spare):
                assert missing + spare > free
                self.pool.release(table)
                return multiple()
            assert self.pool.allocatable == free - missing
            self.held[id(table)] = (table, tokens)
            return table

        @rule(table=tables, computed=st.integers(0, 10))
        def compute(self, table: BlockTable, computed: int) -> None:
            if id(table) not in self.held:
                return
            tokens = self.held[id(table)][1]
            before = table.stored
            self.pool.store(table, pack_tokens(tokens), min(computed, len(tokens)))
            for position in range(before, table.stored):
                prefix = tuple(tokens[: 2 * (position + 1)])
                self.content[table.blocks[position].index] = (table.namespace, prefix)

        @rule(table=tables, token=st.integers(0, 1))
        def decode(self, table: BlockTable, token: int) -> None:
            if id(table) in self.held:
                tokens = self.held[id(table)][1]
                if self.pool.grow(table, len(tokens) + 1):
                    tokens.append(token)

        @rule(table=consumes(tables))
        def release(self, table: BlockTable) -> None:
            if self.held.pop(id(table), None):
                self.pool.release(table)

        @rule(seconds=st.floats(0.001, 1000))
        def wait(self, seconds: float) -> None:
            self.now += seconds

        @rule()
        def clear(self) -> None:
            if self.held:
                with pytest.raises(RuntimeError):
                    self.pool.clear()
                for table, _ in self.held.values():
                    self.pool.release(table)
                self.held.clear()
            self.pool.clear()
            assert self.pool.resident == 0

        @rule()
        def drain(self) -> None:
            self.replay.apply(self.pool.drain())
            assert self.replay.parents == self.told.replay.parents

        @invariant()
        def books_are_right(self) -> None:
            self.pool.check_integrity()
            assert self.told.replay.parents == Replay(self.pool.snapshot()).parents
            assert self.pool.allocatable + self.pool.referenced == self.pool.total == 9
            used = {block.index for table, _ in self.held.values() for block in table.blocks}
            assert self.pool.referenced == len(used)

        def teardown(self) -> None:
            for table, _ in self.held.values():
                self.pool.release(table)
            self.drain()
            assert self.pool.referenced == 0

    PoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
    PoolMachine.TestCase("runTest").runTest()


def test_keys_are_the_contract_keys() -> None:
    pool = BlockPool(8, 4)
    tokens = list(range(14))
    fill(pool, tokens, SALTS[1])
    keys = block_keys(tokens, 4, SALTS[1].key)
    assert pool.drain() == (BlockStored(None, pack_keys(keys)),)
    assert pool.snapshot() == (BlockStored(None, pack_keys(keys)),)


def test_a_collision_never_shares_a_block() -> None:
    pool = BlockPool(8, 2, key_function=lambda packed, parent: 42)
    first = fill(pool, [1, 2, 3])
    assert pool.open(SALTS[0], pack_tokens([1, 2, 9])).blocks == first.blocks[:1]
    assert pool.open(SALTS[0], pack_tokens([5, 6, 9])).blocks == []
    assert pool.open(SALTS[1], pack_tokens([1, 2, 9])).blocks == [], "the same tokens in another namespace"


def test_a_colliding_block_and_its_children_stay_private() -> None:
    pool = BlockPool(8, 2, key_function=lambda packed, parent: 42)
    fill(pool, [1, 2, 3])
    private = fill(pool, [5, 6, 7, 8, 9])
    assert private.stored == 0
    pool.check_integrity()
    pool.release(private)
    assert pool.resident == 1
    assert pool.allocatable == 6
    pool.check_integrity()


def test_content_computed_twice_is_kept_once() -> None:
    pool = BlockPool(8, 2)
    tokens = [1, 2, 3, 4, 5]
    tables = [BlockTable(SALTS[0]) for _ in range(2)]
    for table in tables:
        assert pool.grow(table, 5)
    assert pool.referenced == 6
    for table in tables:
        pool.store(table, pack_tokens(tokens), 5)
    assert pool.referenced == 4
    assert tables[0].blocks[:2] == tables[1].blocks[:2]
    assert len(Replay(pool.drain()[:1]).parents) == 2
    assert pool.drain() == ()


def test_eviction_gives_up_leaves_before_their_parents_and_old_before_new() -> None:
    pool = BlockPool(6, 2)
    old, new = [1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]
    for tokens in (old, new):
        pool.release(fill(pool, tokens))
    first, second = (block_keys(tokens, 2, SALTS[0].key) for tokens in (old, new))
    pool.drain()
    pool.release(pool.open(SALTS[0], pack_tokens([1, 2, 3])))  # the old prompt's first block is used again
    table = BlockTable(SALTS[0])
    assert pool.grow(table, 12)
    expected = [first[2], first[1], *reversed(second), first[0]]
    assert pool.drain() == (BlockRemoved(pack_keys(expected)),)


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_equal_seeds_and_times_give_up_equal_blocks(eviction: str) -> None:
    def play() -> list[Event]:
        now, said = 0.0, list[Event]()
        pool = BlockPool(24, 2, eviction=make_eviction(eviction, 24, "seed"), clock=lambda: now)
        for number in range(200):
            now += number % 7
            pool.release(fill(pool, [number % 13, number % 3, *range(number % 11 * 2), 0]))
            pool.check_integrity()
            said += pool.drain()
        return said

    assert play() == play()


def test_a_prompt_that_returns_is_kept_from_many_that_do_not() -> None:
    def found(eviction: str) -> int:
        now, blocks = 0.0, 0
        pool = BlockPool(80, 2, eviction=make_eviction(eviction, 80), clock=lambda: now)
        for number in range(2000):
            now = float(number)
            table = fill(pool, [number // 4 % 12 if number % 4 == 0 else 1000 + number, 1, 2, 3, 4, 5, 6])
            blocks += 3 * (len(pool.drain()) == 0)
            pool.release(table)
        return blocks

    assert found("lru") == 0
    assert found("reuse") > 600


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_a_pool_of_one_block_serves_one_prompt_after_the_other(eviction: str) -> None:
    pool = BlockPool(1, 2, eviction=make_eviction(eviction, 1))
    for number in range(60):
        pool.release(fill(pool, [number % 3, number % 2]))
        pool.check_integrity()
        assert pool.resident == 1
    too_long = pool.open(SALTS[0], pack_tokens([59 % 3, 59 % 2, 0]))
    assert too_long.stored == 1
    assert not pool.grow(too_long, 3)
    pool.release(too_long)
    pool.check_integrity()


def test_another_eviction_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="lru or reuse"):
        make_eviction("random", 4)


def test_clearing_says_so_once() -> None:
    pool = BlockPool(4, 2)
    pool.release(fill(pool, [1, 2, 3]))
    pool.drain()
    pool.clear()
    pool.clear()
    assert pool.drain() == (AllBlocksCleared(),)
    assert pool.allocatable == 4


@pytest.mark.parametrize(("blocks", "block_size"), [(0, 16), (4, 0)])
def test_an_empty_pool_is_refused(blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        BlockPool(blocks, block_size)
