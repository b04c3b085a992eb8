"""The index under shapes that a random walk seldom meets: many replicas, huge fan-out, long chains, churn, nonsense."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radix.index import PrefixIndex
from radix.run import MAX_BLOCKS
from tests.radix.oracle import Oracle, keys_of


def fresh_keys(seed: random.Random, count: int) -> list[int]:
    return [seed.getrandbits(64) for _ in range(count)]


def test_300_replicas_that_hold_different_extents() -> None:
    index, oracle, seed = PrefixIndex(), Oracle(), random.Random(1)
    replicas = [index.add_replica() for _ in range(300)]
    trunk = [1] * 40
    for rid in replicas:
        path = trunk[: seed.randrange(1, 41)] + [2] * seed.randrange(3)
        index.store(rid, None, keys_of(path))
        oracle.store(rid, path)
    index.check_integrity()
    for path in (trunk, trunk[:9], [*trunk[:20], 2, 2, 3], [*trunk, 2], [3]):
        assert index.match(keys_of(path)) == oracle.overlaps(path)
    for rid in replicas[::2]:
        index.retire_replica(rid)
        oracle.clear(rid)
    assert index.match(keys_of(trunk)) == oracle.overlaps(trunk)
    while index.sweep(3):
        assert index.match(keys_of(trunk)) == oracle.overlaps(trunk)
    index.check_integrity()
    assert len(index) == len(oracle)


def test_an_id_is_used_again_only_when_all_it_held_is_swept() -> None:
    index = PrefixIndex()
    first, second = index.add_replica(), index.add_replica()
    for leaf in range(20):
        index.store(first, None, keys_of([leaf]))
    index.retire_replica(first)
    while index.sweep(1):
        assert index.add_replica() not in (first, second)
    assert index.add_replica() == first
    assert index.match(keys_of([0])) == {}
    assert len(index) == 0


def test_an_id_not_in_use_is_refused() -> None:
    index = PrefixIndex()
    rid = index.add_replica()
    index.store(rid, None, [1])
    index.retire_replica(rid)
    for unused in (rid, rid + 1, -1):
        with pytest.raises(ValueError, match="not in the index"):
            index.store(unused, None, [1])
        with pytest.raises(ValueError, match="not in the index"):
            index.blocks(unused)


def test_an_orphan_matches_only_when_its_ancestors_are_known_and_held() -> None:
    index = PrefixIndex()
    one, two = index.add_replica(), index.add_replica()
    keys = keys_of([1, 2, 3, 4])
    index.store(one, keys[1], keys[2:])
    assert index.match(keys) == {}
    assert index.match(keys[2:]) == {}
    index.store(two, keys[0], [keys[1]])
    assert index.match(keys) == {}
    index.store(two, None, [keys[0]])
    assert index.match(keys) == {two: 2}
    index.store(one, None, keys[:2])
    assert index.match(keys) == {one: 4, two: 2}
    index.check_integrity()


def test_a_chain_broken_in_the_middle_is_whole_again_once_the_middle_is_back() -> None:
    index = PrefixIndex()
    rid = index.add_replica()
    keys = keys_of(range(700))
    index.store(rid, None, keys)
    index.remove(rid, keys[100:600])
    assert index.match(keys) == {rid: 100}
    assert len(index) == index.blocks(rid) == 200
    index.check_integrity()
    index.store(rid, keys[99], keys[100:600])
    assert index.match(keys) == {rid: 700}
    index.remove(rid, keys[:699])
    assert index.match(keys) == {}
    assert len(index) == 1
    index.remove(rid, keys[699:])
    assert len(index) == 0
    index.check_integrity()


def test_thousands_of_children_of_one_block() -> None:
    index, seed = PrefixIndex(), random.Random(2)
    rid = index.add_replica()
    (root,) = keys_of([1])
    leaves = fresh_keys(seed, 9_000)
    index.store(rid, None, [root])
    for leaf in leaves:
        index.store(rid, root, [leaf])
    assert len(index) == 9_001
    assert all(index.match([root, leaf]) == {rid: 2} for leaf in leaves[::50])
    assert sum(len(keys) for _, keys in index.held(rid)) == 9_001
    twigs = fresh_keys(seed, 3)
    index.store(rid, leaves[0], twigs[:2])
    index.store(rid, leaves[0], twigs[2:])  # splits a child
    assert index.match([root, leaves[0], *twigs]) == {rid: 4}
    index.remove(rid, twigs + leaves)
    assert len(index) == 1
    assert index.match([root, leaves[0]]) == {rid: 1}
    index.remove(rid, [root])
    assert len(index) == 0
    index.check_integrity()


def test_every_block_a_run_of_its_own() -> None:
    index, seed = PrefixIndex(), random.Random(3)
    rid = index.add_replica()
    trunk = fresh_keys(seed, 3 * MAX_BLOCKS)
    index.store(rid, None, trunk)
    order = list(range(len(trunk) - 1))
    seed.shuffle(order)
    for at in order:
        index.store(rid, trunk[at], [seed.getrandbits(64)])
    index.check_integrity()
    assert index.match(trunk) == {rid: len(trunk)}
    index.remove(rid, trunk[400:401])
    assert index.match(trunk) == {rid: 400}


def test_the_table_stays_small_and_right_through_churn() -> None:
    """Blocks come and go many times over; what is dead in the table is dropped, what lives is found."""
    index, seed = PrefixIndex(), random.Random(4)
    rid = index.add_replica()
    prompts: list[list[int]] = []
    for _ in range(3_000):
        prompts.append(fresh_keys(seed, 24))
        index.store(rid, None, prompts[-1])
        if len(prompts) > 200:
            index.remove(rid, prompts.pop(0)[::-1])
    index.check_integrity()
    assert len(index) == 200 * 24
    assert index._tree.table._hints < 3 * len(index)
    assert all(index.match(prompt) == {rid: 24} for prompt in prompts)


@pytest.mark.parametrize("top", [0, 0xFFFFFFFF])
def test_keys_that_are_not_spread_make_the_index_slow_but_not_large_or_wrong(top: int) -> None:
    index = PrefixIndex()
    rid = index.add_replica()
    keys = [top << 32 | low for low in range(2_000)]
    index.store(rid, None, keys)
    index.remove(rid, keys[1_000:])
    index.check_integrity()
    assert index.match(keys) == {rid: 1_000}
    assert len(index._tree.table._directory) < len(keys) / 8


KEYS = st.integers(0, 11)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 2), st.none() | KEYS, st.lists(KEYS, max_size=6)),
        min_size=1,
        max_size=25,
    )
)
def test_reports_that_contradict_each_other_never_break_the_tree(
    reports: list[tuple[bool, int, int | None, list[int]]],
) -> None:
    """Keys that do not name their prefix: blocks in two places, blocks below themselves."""
    index = PrefixIndex()
    replicas = [index.add_replica() for _ in range(3)]
    for stored, number, parent, keys in reports:
        if stored:
            index.store(replicas[number], parent, keys)
        else:
            index.remove(replicas[number], keys)
        index.match(keys)
        index.check_integrity()
    for rid in replicas:
        list(index.held(rid))
        index.clear(rid)
    while index.sweep(2):
        index.check_integrity()
    assert len(index) == 0


def test_removing_what_no_block_can_be_called_is_ignored() -> None:
    index = PrefixIndex()
    rid = index.add_replica()
    index.store(rid, None, [1])
    index.remove(rid, [-1, 1 << 64, 2])
    assert index.match([1]) == {rid: 1}


@pytest.mark.parametrize(("parent", "keys"), [(-1, [1]), (1 << 64, [1]), (7, [1 << 64]), (None, [1, -1])])
def test_what_is_not_64_bits_is_refused_and_leaves_no_trace(parent: int | None, keys: list[int]) -> None:
    index = PrefixIndex()
    rid = index.add_replica()
    with pytest.raises((ValueError, OverflowError)):
        index.store(rid, parent, keys)
    assert len(index) == 0
    index.check_integrity()
