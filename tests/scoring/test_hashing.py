"""Hashing policies: a key has a home, a change of the fleet moves only what it must, and the bound holds."""

from __future__ import annotations

from collections import Counter, deque
from fractions import Fraction
from math import ceil
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.decision import Query
from scoring.ledger import Booking, ReplicaLoad
from scoring.policies import make_policy

KEYS = Random(5).choices(range(1, 2**62), k=2000)


def fleet(count: int) -> list[ReplicaLoad]:
    return [ReplicaLoad(f"replica-{number}") for number in range(count)]


def home(name: str, key: int, loads: list[ReplicaLoad]) -> str:
    choice = make_policy(name, Random(0)).choose(Query(1000, 10, prefix=key), loads, [0] * len(loads))
    return loads[choice.index].name


@pytest.mark.parametrize("name", ["sticky", "prefix_hash"])
@given(st.integers(2, 20), st.integers(0, 19), st.randoms(use_true_random=False))
def test_a_prefix_moves_only_when_its_replica_leaves(name: str, count: int, gone: int, random: Random) -> None:
    loads = fleet(count)
    left = [load for load in loads if load.name != f"replica-{gone}"]
    random.shuffle(left)  # the order of the candidates does not matter
    for key in KEYS[:40]:
        before, after = home(name, key, loads), home(name, key, left)
        assert before in (after, f"replica-{gone}")


def test_the_prefixes_of_a_replica_that_left_spread_over_all_others() -> None:
    loads = fleet(9)
    moved = Counter(home("sticky", key, loads[1:]) for key in KEYS if home("sticky", key, loads) == "replica-0")
    assert len(moved) == 8
    assert max(moved.values()) < 2 * sum(moved.values()) / 8


@pytest.mark.parametrize("keys", [KEYS, range(1, 2001)], ids=["hashes", "small numbers"])
def test_homes_are_even(keys: list[int]) -> None:
    counts = Counter(home("sticky", key, fleet(8)) for key in keys)
    assert all(180 < counts[f"replica-{number}"] < 320 for number in range(8))


def test_a_prefix_stays_however_busy_its_replica_is_unless_a_bound_is_set() -> None:
    loads = fleet(4)
    busy = next(load for load in loads if load.name == home("sticky", 7, loads))
    busy.waiting = 1000
    assert home("sticky", 7, loads) == busy.name
    assert home("prefix_hash", 7, loads) != busy.name


def test_the_bound_by_hand() -> None:
    # 7 open requests and this one on 4 replicas: ceil(1.25 * 8 / 4) = 3 each at most.
    loads = fleet(4)
    first = next(load for load in loads if load.name == home("sticky", 7, loads))
    others = [load for load in loads if load is not first]
    second = next(load for load in others if load.name == home("sticky", 7, others))
    third, fourth = (load for load in others if load is not second)
    first.waiting, second.decoding, third.waiting, fourth.decoding = 2, 3, 2, 0
    assert home("prefix_hash", 7, loads) == first.name
    first.waiting, third.waiting = 3, 1
    assert home("prefix_hash", 7, loads) in (third.name, fourth.name)
    second.decoding, third.waiting = 2, 2
    assert home("prefix_hash", 7, loads) == second.name


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=40),
    st.integers(1, 2**64 - 1),
)
def test_nobody_is_pushed_above_the_bound(running: list[int], key: int) -> None:
    loads = fleet(len(running))
    for load, count in zip(loads, running, strict=True):
        load.waiting = count
    chosen = next(load for load in loads if load.name == home("prefix_hash", key, loads))
    assert chosen.running + 1 <= ceil(Fraction(5, 4) * (sum(running) + 1) / len(running))


def test_the_bound_holds_when_half_of_all_requests_share_a_prefix() -> None:
    loads, random, policy = fleet(8), Random(3), make_policy("prefix_hash", Random(4))
    under_way: deque[Booking] = deque()
    for _ in range(4000):
        key = 42 if random.random() < 0.5 else random.getrandbits(64)
        choice = policy.choose(Query(1000, 10, prefix=key), loads, [0] * 8)
        under_way.append(loads[choice.index].book(1000, 1000))
        if len(under_way) > 80:
            under_way.popleft().release()
        assert max(load.running for load in loads) <= ceil(1.25 * 82 / 8)


@pytest.mark.parametrize("name", ["sticky", "prefix_hash"])
def test_prompts_without_a_block_go_by_load(name: str) -> None:
    loads = fleet(3)
    loads[0].waiting, loads[2].decoding = 2, 1
    assert home(name, 0, loads) == "replica-1"
