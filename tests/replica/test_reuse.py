"""Eviction keeps the tree closed under prefixes whoever decides, and learns what recency alone cannot know."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radix.blocks import pack_tokens
from replica.blocks import BlockPool, Namespace
from replica.eviction import Eviction, LeastRecent
from replica.reuse import GHOSTS, WATCHED, LeastReuse, make_eviction
from replica.reuse_curves import AGES, EDGES, Kind, ReuseCurves, age_step, densities
from replica.reuse_duel import Duel
from replica.reuse_runs import Visit

Prompt = tuple[int, ...]
"""Each number names the block at its place; equal prefixes are equal blocks."""


class Cache:
    """A block pool in small: which prefix each block holds, and how many tables use it. Checks every victim."""

    def __init__(self, capacity: int, eviction: Eviction) -> None:
        self.capacity = capacity
        self.eviction = eviction
        self.at: dict[Prompt, int] = {}
        self.holds: dict[int, Prompt] = {}
        self.uses = [0] * capacity
        self.blank = list(range(capacity))
        self.given_up: list[int] = []

    def open(self, prompt: Prompt, now: float) -> tuple[Visit, list[int]] | None:
        """A table with all its blocks, or None where it finds no room."""
        path: list[int] = []
        while len(path) < len(prompt) and (block := self.at.get(prompt[: len(path) + 1])) is not None:
            path.append(block)
            self.uses[block] += 1
        self.found = len(path)
        visit = self.eviction.used(path, now)
        if len(prompt) - len(path) > self.uses.count(0):
            self.close(visit, path, now)
            return None
        self.eviction.ran(visit, now)
        fresh = [self._take(now) for _ in prompt[len(path) :]]
        for block in fresh:
            held = prompt[: len(path) + 1]
            self.at[held], self.holds[block] = block, held
            self.eviction.stored(visit, [block], path[-1] if path else None, [hash(held) % 2**64], now)
            path.append(block)
        return visit, path

    def close(self, visit: Visit, path: list[int], now: float) -> None:
        for block in path:
            self.uses[block] -= 1
        self.eviction.freed(visit, [block for block in path if not self.uses[block]], now)

    def _take(self, now: float) -> int:
        if self.blank:
            block = self.blank.pop()
        else:
            block = self.eviction.victims(1, now)[0]
            held = self.holds.pop(block)
            assert not self.uses[block], "a block in use was given up"
            assert not any(other[:-1] == held for other in self.at), "a block was given up before its child"
            del self.at[held]
            self.given_up.append(block)
        self.uses[block] = 1
        return block


def hit_rate(eviction: Eviction, capacity: int, asks: Sequence[tuple[float, Prompt]]) -> float:
    cache, found, total = Cache(capacity, eviction), 0, 0
    for now, prompt in asks:
        table = cache.open(prompt, now)
        assert table is not None
        found += cache.found
        total += len(prompt)
        cache.close(*table, now)
    return found / total


steps = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple),
        st.booleans(),
        st.floats(0.0, 300.0),
    ),
    max_size=80,
)


@pytest.mark.parametrize("kind", ["lru", "reuse"])
@settings(max_examples=80, deadline=None)
@given(steps=steps, seed=st.integers(0, 3))
def test_only_leaves_nobody_uses_are_given_up(kind: str, steps: list[tuple[Prompt, bool, float]], seed: int) -> None:
    eviction: Eviction = LeastRecent() if kind == "lru" else LeastReuse(9, seed)
    cache, now, tables = Cache(9, eviction), 0.0, []
    for prompt, keep, pause in steps:
        now += pause
        table = cache.open(prompt, now)
        if table is not None:
            tables.append(table)
        if tables and not keep:
            cache.close(*tables.pop(0), now)
    for table in tables:
        cache.close(*table, now)
    resident = len(cache.holds)
    for _ in range(resident):
        cache.blank.clear()
        cache._take(now)
    assert not cache.holds, "every resident block can be given up in the end"
    with pytest.raises(IndexError, match="not so many"):
        eviction.victims(1, now)


@settings(max_examples=30, deadline=None)
@given(steps=steps)
def test_the_same_seed_gives_up_the_same_blocks(steps: list[tuple[Prompt, bool, float]]) -> None:
    def play() -> list[int]:
        cache, now = Cache(6, LeastReuse(6, seed=1)), 0.0
        for prompt, _, pause in steps:
            now += pause
            table = cache.open(prompt, now)
            if table is not None:
                cache.close(*table, now)
        return cache.given_up

    assert play() == play()


def test_what_is_remembered_stays_bounded() -> None:
    eviction = LeastReuse(10)
    cache = Cache(10, eviction)
    for number in range(1000):
        table = cache.open((number % 300, number, number), float(number))
        assert table is not None
        cache.close(*table, float(number))
        assert eviction.ghosts <= GHOSTS * 10
        assert eviction.runs <= (GHOSTS + 1) * 10


def mix(requests: int) -> list[tuple[float, Prompt]]:
    """Every fourth request is one of 12 that return each 48 s; the others, of the same form, never return."""
    asks: list[tuple[float, Prompt]] = []
    for number in range(requests):
        first = number // 4 % 12 if number % 4 == 0 else 1000 + number
        asks.append((float(number), (first, 1, 2, 3)))
    return asks


def test_reuse_keeps_what_returns_where_recency_keeps_what_never_does() -> None:
    assert hit_rate(LeastRecent(), 80, mix(2000)) == 0.0
    assert hit_rate(LeastReuse(80), 80, mix(2000)) > 0.12


def test_a_loop_slightly_larger_than_the_cache_still_hits() -> None:
    loop = [(float(number), (number % 22, 1, 2, 3)) for number in range(2000)]
    assert hit_rate(LeastRecent(), 80, loop) == 0.0
    assert hit_rate(LeastReuse(80), 80, loop) > 0.4


def test_where_recency_is_right_reuse_is_not_far_behind() -> None:
    random, asks = Random(3), list[tuple[float, Prompt]]()
    for number in range(3000):
        again = number > 20 and random.random() < 0.5
        asks.append((float(number), asks[number - random.randrange(1, 18)][1] if again else (number, 1, 2, 3)))
    assert hit_rate(LeastReuse(80), 80, asks) > hit_rate(LeastRecent(), 80, asks) - 0.01


@pytest.mark.parametrize("learned", [False, True])
def test_the_oldest_go_first_until_as_many_blocks_were_given_up_as_there_are(learned: bool) -> None:
    cache = Cache(64, LeastReuse(64))

    def ask(numbers: range, now: float) -> None:
        for number in numbers:
            table = cache.open((number,), now + number / 10_000)
            assert table is not None
            cache.close(*table, now + number / 10_000)

    if learned:
        ask(range(1000, 1128), -100.0)
    for turn in range(4):
        ask(range(32), 100.0 * turn)
    ask(range(2000, 2048), 395.0)
    kept = sum((number,) in cache.at for number in range(32))
    assert kept > 27 if learned else kept < 22, "they are old, and about to return"


def test_a_table_that_never_ran_teaches_nothing() -> None:
    eviction = LeastReuse(4)
    cache = Cache(4, eviction)
    held = cache.open((1, 2), 0.0)
    small = cache.open((3,), 0.0)
    assert held is not None
    assert small is not None
    cache.close(*small, 0.0)
    before = eviction.hits
    for now in range(50):
        assert cache.open((3, 4, 5, 6), float(now)) is None
    assert eviction.hits == before == 0.0
    again = cache.open((3,), 60.0)
    assert again is not None
    assert eviction.hits == 1.0


def test_a_table_that_never_ran_leaves_every_block_as_old_as_it_was() -> None:
    eviction = LeastReuse(6)
    cache = Cache(6, eviction)

    def opened(prompt: Prompt, now: float) -> tuple[Visit, list[int]]:
        table = cache.open(prompt, now)
        assert table is not None
        return table

    def known() -> tuple[float, dict[Kind, list[float]]]:
        return eviction.hits, eviction.waiting(60.0)

    cache.close(*opened((1, 2, 3), 0.0), 0.0)
    cache.close(*opened((1,), 50.0), 50.0)
    opened((7, 8, 9), 60.0)
    before = known()
    for _ in range(50):
        assert cache.open((1, 2, 3, 4), 60.0) is None, "its prefix is free, and younger at the root"
        assert cache.open((7, 8, 9, 1, 2, 3, 4), 60.0) is None, "its prefix is in use"
    assert known() == before


def test_all_that_waits_for_a_hit_counts_though_no_more_than_so_many_runs_are_looked_at() -> None:
    blocks = 2 * WATCHED + 1
    eviction = LeastReuse(blocks)
    for block in range(blocks):
        visit = eviction.used([], 0.0)
        eviction.ran(visit, 0.0)
        eviction.stored(visit, [block], None, [block], 0.0)
        eviction.freed(visit, [block], 0.0)
    assert eviction.runs == blocks
    counted = sum(map(sum, eviction.waiting(1.0).values()))
    assert abs(counted - blocks) < 3


def test_a_block_whose_hits_come_late_is_worth_as_much_early() -> None:
    late = age_step(100.0)
    worth = densities([0.05 if step == late else 0.0 for step in range(AGES)])
    assert 0.0 < worth[0] <= worth[late]
    assert worth[late + 1] == 0.0
    assert worth[0] > 0.5 / EDGES[late + 1] * 0.5


def test_curves_tell_apart_kinds_that_return_and_kinds_that_do_not() -> None:
    curves = ReuseCurves(memory=1e6)
    curves.learn((1, False, 0), 600.0, False, 1000)
    curves.learn((3, False, 0), 50.0, True, 1000)
    curves.refresh({})
    assert curves.worth[3, False, 0][0] > 3 * curves.worth[1, False, 0][0]


def test_recency_is_followed_where_it_finds_more_and_reuse_is_tried_again() -> None:
    duel = Duel(64)

    def followed(found: bool) -> list[bool]:
        answers = []
        for _ in range(40):
            duel.used(range(60), found)
            answers.append(duel.recent)
        return answers

    assert not any(followed(True)), "both find everything"
    answers = followed(False)
    assert any(answers), "a cache by recency would have found all of it"
    assert not all(answers[answers.index(True) :]), "reuse gets another chance"
    assert not followed(True)[-1]


def test_reuse_is_followed_where_it_finds_more() -> None:
    duel = Duel(64)
    for first in range(0, 100_000, 64):
        duel.used(range(first, first + 64), True)
        assert not duel.recent


def test_requests_that_return_at_random_cost_no_more_than_a_point() -> None:
    """Nothing is to be learned here but recency: every prompt returns as likely, after as long."""

    def found(eviction: str) -> float:
        random, due, blocks, total, now = Random(5), list[tuple[float, int, int]](), 0, 0, 0.0
        pool = BlockPool(600, 1, eviction=make_eviction(eviction, 600), clock=lambda: now)
        for number in range(4000):
            now = float(number)
            first, turn = heappop(due)[1:] if due and due[0][0] <= number else (number, 0)
            if random.random() < 0.7:
                heappush(due, (number + 1 + random.expovariate(1 / 100), first, turn + 1))
            prompt = pack_tokens([first, *range(5 + 3 * turn), 0])
            table = pool.open(Namespace("m"), prompt)
            assert pool.grow(table, 7 + 3 * turn)
            blocks, total = blocks + table.stored, total + 7 + 3 * turn
            pool.store(table, prompt, 6 + 3 * turn)
            pool.release(table)
            pool.drain()
        return blocks / total

    assert found("reuse") > found("lru") - 0.01 > 0.1
