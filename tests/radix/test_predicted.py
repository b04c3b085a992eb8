"""Beliefs follow the routing: what was recorded last stays longest, and nothing outstays its capacity or its age."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from radix.predicted import STAMPS_PER_TTL, PredictedResidency
from tests.radix.oracle import keys_of

TTL_S = 100.0
EARLY_S = TTL_S / STAMPS_PER_TTL


def prompts(residency: PredictedResidency, count: int, blocks: int, rid: int) -> list[list[int]]:
    """Distinct prompts, recorded a second apart from time 0 on."""
    made = [keys_of([number, *range(blocks - 1)]) for number in range(count)]
    for number, keys in enumerate(made):
        residency.record(rid, keys, float(number))
    return made


def test_a_recorded_prompt_is_matched_by_its_siblings() -> None:
    residency = PredictedResidency(capacity_blocks=100, ttl_s=TTL_S)
    one, two = residency.add_replica(), residency.add_replica()
    residency.record(one, keys_of([1, 2, 3]), 0.0)
    residency.record(two, keys_of([1, 2, 4, 5]), 0.0)
    assert residency.match(keys_of([1, 2, 3, 9]), 0.0) == {one: 3, two: 2}
    assert residency.match(keys_of([2]), 0.0) == {}


def test_the_least_recently_recorded_prompt_makes_room() -> None:
    residency = PredictedResidency(capacity_blocks=12, ttl_s=TTL_S)
    rid = residency.add_replica()
    first, second, third = prompts(residency, 3, 4, rid)
    residency.record(rid, first, 3.0)
    residency.record(rid, keys_of([7, 7, 7, 7]), 4.0)
    assert residency.match(second, 4.0) == {}
    assert residency.match(first, 4.0) == residency.match(third, 4.0) == {rid: 4}


def test_a_block_stays_while_a_newer_path_goes_through_it() -> None:
    residency = PredictedResidency(capacity_blocks=8, ttl_s=TTL_S)
    rid = residency.add_replica()
    residency.record(rid, keys_of([1, 2, 3, 4]), 0.0)
    residency.record(rid, keys_of([8, 8]), 1.0)
    residency.record(rid, keys_of([1, 2]), 2.0)
    residency.record(rid, keys_of([9, 9, 9]), 3.0)
    assert residency.match(keys_of([1, 2, 3, 4]), 3.0) == {rid: 2}
    assert residency.match(keys_of([8, 8]), 3.0) == {rid: 2}


def test_a_prompt_beyond_the_capacity_is_believed_from_its_start() -> None:
    residency = PredictedResidency(capacity_blocks=300, ttl_s=TTL_S)
    rid = residency.add_replica()
    keys = keys_of(range(1000))
    residency.record(rid, keys, 0.0)
    residency.record(rid, keys, 1.0)
    assert residency.match(keys, 1.0) == {rid: 300}


def test_belief_ends_with_age_but_not_for_what_was_recorded_again() -> None:
    residency = PredictedResidency(capacity_blocks=1000, ttl_s=TTL_S)
    one, two = residency.add_replica(), residency.add_replica()
    trunk = [1] * 20
    residency.record(one, keys_of(trunk), 0.0)
    residency.record(two, keys_of([*trunk, 2]), 0.0)
    residency.record(two, keys_of(trunk[:10]), 50.0)
    assert residency.match(keys_of(trunk), TTL_S - 2 * EARLY_S) == {one: 20, two: 20}
    assert residency.match(keys_of(trunk), TTL_S) == {two: 10}
    assert residency.match(keys_of(trunk), TTL_S + 50.0) == {}
    assert len(residency.index) == 0


def test_a_retired_replica_is_gone_and_its_id_comes_back_clean() -> None:
    residency = PredictedResidency(capacity_blocks=100, ttl_s=TTL_S)
    rid = residency.add_replica()
    keys = keys_of([1, 2])
    residency.record(rid, keys, 0.0)
    residency.retire_replica(rid)
    assert residency.match(keys, 0.0) == {}
    with pytest.raises(ValueError, match="not in the index"):
        residency.record(rid, keys, 0.0)
    residency.expire(1.0)
    assert residency.add_replica() == rid
    residency.record(rid, keys, 90.0)
    assert residency.match(keys, 150.0) == {rid: 2}
    assert residency.match(keys, 90.0 + TTL_S) == {}


def test_without_a_lifetime_only_the_capacity_bounds() -> None:
    residency = PredictedResidency(capacity_blocks=40)
    rid = residency.add_replica()
    made = prompts(residency, 10, 4, rid)
    assert all(residency.match(keys, 1e12) == {rid: 4} for keys in made)
    residency.record(rid, keys_of([99]), 1e12)
    assert residency.match(made[0], 1e12) == {}


CAPACITY = 40
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=12)


class PredictedMachine(RuleBasedStateMachine):
    """Held against a plain account: for each replica and block, when a path through it was last recorded.

    Age must end each block on its own. Capacity may push out more than it must by one run, hence what the account says
    is gone must be gone, and what is pushed out must be no younger than anything that stays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.residency = PredictedResidency(capacity_blocks=CAPACITY, ttl_s=TTL_S)
        self.replicas: list[int] = []
        self.recorded: dict[int, dict[int, float]] = {}
        self.now = 0.0

    @initialize()
    def begin(self) -> None:
        self.add()
        self.add()

    @precondition(lambda self: len(self.replicas) < 4)
    @rule()
    def add(self) -> None:
        rid = self.residency.add_replica()
        assert rid not in self.replicas
        self.replicas.append(rid)
        self.recorded[rid] = {}

    @precondition(lambda self: len(self.replicas) > 1)
    @rule(number=st.integers(0, 9))
    def retire(self, number: int) -> None:
        rid = self.replicas.pop(number % len(self.replicas))
        self.residency.retire_replica(rid)
        del self.recorded[rid]

    @rule(seconds=st.integers(1, 40))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.residency.expire(self.now)

    @rule(number=st.integers(0, 9), tokens=TOKENS, tail=st.integers(0, 40))
    def record(self, number: int, tokens: list[int], tail: int) -> None:
        rid = self.replicas[number % len(self.replicas)]
        keys = keys_of([*tokens, *[5] * tail])
        self.residency.record(rid, keys, self.now)
        keys = keys[:CAPACITY]
        self.recorded[rid].update(dict.fromkeys(keys, self.now))
        assert self.residency.match(keys, self.now)[rid] == len(keys)

    @invariant()
    def bounded_by_age_and_capacity(self) -> None:
        self.residency.index.check_integrity()
        self.residency.match([], self.now)
        for rid in self.replicas:
            held = self.held(rid)
            recorded = self.recorded[rid]
            assert len(held) == self.residency.blocks(rid) <= CAPACITY
            assert all(recorded[key] > self.now - TTL_S for key in held)
            pushed_out = [at for key, at in recorded.items() if key not in held and at > self.now - TTL_S + EARLY_S]
            if pushed_out and held:
                assert max(pushed_out) <= min(recorded[key] for key in held) + EARLY_S
            self.recorded[rid] = {key: recorded[key] for key in held}

    def held(self, rid: int) -> set[int]:
        before: set[int | None] = {None}
        for parent, keys in self.residency.index.held(rid):
            assert parent in before, "a block outlived its parent"
            before.update(keys)
        return {key for key in before if key is not None}


PredictedMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPredicted = PredictedMachine.TestCase


def test_forgetting_a_prompt_leaves_what_was_believed_before_it() -> None:
    residency = PredictedResidency(capacity_blocks=100, ttl_s=TTL_S)
    rid = residency.add_replica()
    known, longer, sibling = keys_of([1, 2, 3]), keys_of([1, 2, 3, 4, 5]), keys_of([1, 2, 9])
    residency.record(rid, known, 0.0)
    for number, prompt in enumerate((longer, sibling, longer)):
        kept = residency.match(prompt, 0.0)[rid]
        residency.record(rid, prompt, 1.0 + number)
        residency.forget(rid, prompt, kept)
        assert residency.match(prompt, 1.0 + number) == {rid: kept}
    assert residency.match(known, 5.0) == {rid: 3}
    assert residency.blocks(rid) == 3
    residency.index.check_integrity()
    residency.expire(5.0 + TTL_S)
    assert residency.blocks(rid) == 0
