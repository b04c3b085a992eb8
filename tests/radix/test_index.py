"""The index answers as the oracle does, whatever happens in whatever order, and keeps its invariants at each step."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from radix.index import PrefixIndex
from radix.inspection import holds, sample
from tests.radix.oracle import Oracle, Path, keys_of

TRUNK = [7] * 600
SHORT = st.lists(st.integers(0, 1), min_size=1, max_size=8)
# Paths along a trunk of several runs' length, that leave it here and there.
LONG = st.builds(lambda at, leaf: TRUNK[:at] + leaf, st.sampled_from([1, 2, 200, 255, 256, 257, 520]), SHORT)
PATHS = st.one_of(SHORT, SHORT, LONG)


class IndexMachine(RuleBasedStateMachine):
    """Ids of the index and of the oracle are the same, until an id is used again: then the oracle has forgotten it."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.oracle = Oracle()
        self.replicas: list[int] = []
        self.dirty = False

    def pick(self, number: int) -> int:
        return self.replicas[number % len(self.replicas)]

    @initialize(count=st.integers(1, 4))
    def begin(self, count: int) -> None:
        for _ in range(count):
            self.add()

    @precondition(lambda self: len(self.replicas) < 6)
    @rule()
    def add(self) -> None:
        rid = self.index.add_replica()
        assert rid not in self.replicas
        self.replicas.append(rid)
        assert self.index.blocks(rid) == 0

    @precondition(lambda self: len(self.replicas) > 1)
    @rule(number=st.integers(0, 9))
    def die(self, number: int) -> None:
        rid = self.pick(number)
        self.replicas.remove(rid)
        self.index.retire_replica(rid)
        self.oracle.clear(rid)
        self.dirty = True

    @rule(number=st.integers(0, 9))
    def clear(self, number: int) -> None:
        self.index.clear(self.pick(number))
        self.oracle.clear(self.pick(number))
        self.dirty = True

    @rule(budget=st.integers(1, 8))
    def sweep(self, budget: int) -> None:
        self.dirty = self.index.sweep(budget)

    @rule(number=st.integers(0, 9), path=PATHS)
    def store(self, number: int, path: Path) -> None:
        self.index.store(self.pick(number), None, keys_of(path))
        self.oracle.store(self.pick(number), path)

    @rule(number=st.integers(0, 9), path=PATHS)
    def store_ending_a_run(self, number: int, path: Path) -> None:
        self.index.hold_path(self.pick(number), None, keys_of(path), end_run=True)
        self.oracle.store(self.pick(number), path)

    @rule(number=st.integers(0, 9), path=PATHS, start=st.integers(0, 600))
    def store_below_some_block(self, number: int, path: Path, start: int) -> None:
        """The parent may be unknown, or held by others only."""
        start %= len(path)
        keys = keys_of(path)
        self.index.store(self.pick(number), keys[start - 1] if start else None, keys[start:])
        self.oracle.store(self.pick(number), path, start)

    @rule(number=st.integers(0, 9), path=PATHS, count=st.integers(1, 600))
    def remove_tail(self, number: int, path: Path, count: int) -> None:
        keys = keys_of(path)
        self.index.remove(self.pick(number), keys[: -count - 1 : -1])
        self.oracle.remove(self.pick(number), path, range(max(0, len(path) - count), len(path)))

    @rule(number=st.integers(0, 9), path=PATHS, data=st.data())
    def remove_any(self, number: int, path: Path, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.integers(0, len(path) - 1), max_size=6))
        keys = keys_of(path)
        self.index.remove(self.pick(number), [keys[block] for block in blocks])
        self.oracle.remove(self.pick(number), path, blocks)

    @rule(number=st.integers(0, 9), path=PATHS, low=st.integers(0, 600), count=st.integers(1, 300))
    def remove_middle(self, number: int, path: Path, low: int, count: int) -> None:
        low %= len(path)
        blocks = range(low, min(len(path), low + count))
        self.index.remove(self.pick(number), keys_of(path)[low : low + count])
        self.oracle.remove(self.pick(number), path, blocks)

    @rule(number=st.integers(0, 9), path=PATHS)
    def take_over(self, number: int, path: Path) -> None:
        other = self.index.add_replica()
        self.index.store(other, None, keys_of(path))
        self.index.take_over(self.pick(number), other)
        self.oracle.clear(self.pick(number))
        self.oracle.store(self.pick(number), path)
        self.dirty = True

    @rule(path=PATHS)
    def match(self, path: Path) -> None:
        assert self.index.match(keys_of(path)) == self.oracle.overlaps(path)

    @rule(number=st.integers(0, 9), path=PATHS)
    def holds(self, number: int, path: Path) -> None:
        """Block by block, whoever holds the ancestors; and of keys that nobody ever heard of, none."""
        rid = self.pick(number)
        held = self.oracle.keys(rid)
        asked = [*keys_of(path), 12345, 1 << 64, -1]
        assert holds(self.index, rid, asked) == [key in held for key in asked]

    @rule(number=st.integers(0, 9), count=st.integers(1, 20))
    def sample(self, number: int, count: int) -> None:
        """Only blocks that are held, none twice; and each of them sooner or later."""
        rid = self.pick(number)
        held = self.oracle.keys(rid)
        missing = set(held)
        for seed in range(500):
            for wanted in (count, len(held)):
                drawn = sample(self.index, rid, wanted, Random(seed))
                assert len(set(drawn)) == len(drawn) <= wanted
                assert held.issuperset(drawn)
                missing.difference_update(drawn)
            if not missing:
                break
        assert not missing

    @rule()
    def replay(self) -> None:
        """What `held` yields makes an equal index."""
        copy = PrefixIndex()
        ids = {rid: copy.add_replica() for rid in self.replicas}
        for rid in self.replicas:
            known: set[int] = set()
            before_known: set[int | None] = set()
            for parent, keys in self.index.held(rid):
                if parent not in known:
                    before_known.add(parent)
                known.update(keys)
                copy.store(ids[rid], parent, keys)
            assert len(known) == copy.blocks(ids[rid]) == self.index.blocks(rid)
            assert known.isdisjoint(before_known), "a child came before its parent"
        copy.check_integrity()
        for path in self.oracle.paths():
            expected = {ids[rid]: overlap for rid, overlap in self.oracle.overlaps(path).items()}
            assert copy.match(keys_of(path)) == expected

    @invariant()
    def equal(self) -> None:
        self.index.check_integrity()
        for rid in self.replicas:
            assert self.index.blocks(rid) == self.oracle.blocks(rid)
        if not self.dirty:
            assert len(self.index) == len(self.oracle)


IndexMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestIndex = IndexMachine.TestCase


def test_a_sample_gives_every_block_the_same_chance_in_long_runs_and_short_ones() -> None:
    index = PrefixIndex()
    rid, other = index.add_replica(), index.add_replica()
    long, short = range(1, 2001), range(10_000, 12_000)
    index.store(rid, None, long)
    for key in short:
        index.store(rid, None, [key])
    index.store(other, None, range(20_000, 24_000))
    rng = Random(1)
    drawn = [key for _ in range(40) for key in sample(index, rid, 500, rng)]
    assert 0.4 < sum(key in long for key in drawn) / len(drawn) < 0.6


def test_nobody_is_asked_about_a_replica_that_is_gone() -> None:
    index = PrefixIndex()
    rid = index.add_replica()
    index.store(rid, None, [1, 2, 3])
    assert holds(index, rid, [3]) == [True]
    index.retire_replica(rid)
    with pytest.raises(ValueError, match="not in the index"):
        holds(index, rid, [3])
    with pytest.raises(ValueError, match="not in the index"):
        sample(index, rid, 1, Random(1))
