"""The fast way to the costs gives what the formula gives, to the last bit, whatever has happened to the loads."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.backlog import wait_s
from scoring.cost import Weights, costs_s
from scoring.decision import Query
from scoring.kv import Kv
from scoring.learned import PRIOR, Learned
from scoring.ledger import Booking, ReplicaLoad
from scoring.shared_loads import OpenTotals, SharedLoads, Update

RATES = (PRIOR, Learned(1 / 8000, 0.01), Learned(1 / 9000, 0.02, 0.05), Learned(1 / 1000, 0.1))
TOKENS = st.one_of(st.sampled_from([0, 1, 1000]), st.integers(0, 60_000))


def plain_costs_s(query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int], weights: Weights) -> list[float]:
    """The formula as cost.py's docstring has it, from the sums themselves."""
    paces = [load.learned.seconds_per_token for load in loads]
    mean_pace = paces[0] if len(set(paces)) == 1 else len(paces) / sum([1.0 / pace for pace in paces])
    least_waiting = min([weights.most_waiting, *(load.waiting for load in loads)])
    miss_s = mean_pace * (weights.miss + weights.queue * least_waiting)
    held_by_most = sorted(overlaps)[(len(overlaps) - 1) // 2]
    costs = []
    for load, pace, held in zip(loads, paces, overlaps, strict=True):
        overlap = max(held, min(held_by_most, held + int(weights.common_s / mean_pace)))
        uncached = query.prompt_tokens - overlap
        beside = pace * (1.0 + load.learned.slowdown * load.decoding)
        prefill = uncached * beside
        cost = uncached * miss_s + load.running * 1e-6
        if load.capacity_tokens:
            cost += max(load.context_tokens + query.prompt_tokens - load.capacity_tokens, 0) * pace
        cost += load.decoding * (prefill * weights.interference + weights.stream_share * query.answer_s)
        if load.waiting:
            wait = wait_s(load.queued_tokens * beside, load.waiting, query.now - load.moved_at)
            cost += wait + mean_pace * weights.own_queue * load.waiting * uncached
        costs.append(cost + prefill)
    return costs


def plain_choice(costs: list[float], rng: Random) -> int:
    """Any of the least, with equal chance; no chance is drawn where there is one only."""
    equals = [position for position, cost in enumerate(costs) if cost == min(costs)]
    return equals[int(rng.random() * len(equals))] if len(equals) > 1 else equals[0]


class Site:
    """A few loads to which things happen, and the same chance twice."""

    def __init__(self, count: int, capacity_tokens: int, seed: int) -> None:
        self.loads = [ReplicaLoad(f"r{number}", capacity_tokens) for number in range(count)]
        self.now = 1000.0
        self._shared = SharedLoads("here")
        for load in self.loads:
            self._shared.add(load)
        self._bookings: list[Booking] = []
        self._heard = 0
        self._fast, self._chance = Kv(Random(seed)), Random(seed)

    def happens(self, kind: str, which: int, amount: int) -> None:
        load = self.loads[which % len(self.loads)]
        self.now += amount / 40_000 - 0.2  # now and then a little out of order
        if kind in ("book", "book_silent"):
            self._bookings.append(load.book(amount, amount // 2, self.now, streamed=kind == "book"))
        elif kind in ("first_byte", "release") and self._bookings:
            getattr(self._bookings[which % len(self._bookings)], kind)(self.now)
        elif kind == "settle":
            load.settle(self.now)
        elif kind == "learn":
            load.learned = RATES[amount % len(RATES)]
        elif kind == "hear":
            self._heard += 1
            said = OpenTotals(load.name, 0, amount, 2 * amount, which % 4, which % 3)
            self._shared.heard(Update("there", self._heard, (said,)), self.now)
        elif kind == "resize":
            load.capacity_tokens = amount

    def check(self, query: Query, overlaps: list[int]) -> None:
        costs = plain_costs_s(query, self.loads, overlaps, Weights())
        choice = self._fast.choose(query, self.loads, overlaps)
        assert choice.costs == costs
        assert choice.index == plain_choice(costs, self._chance)


KINDS = ["book", "book", "book_silent", "first_byte", "release", "settle", "learn", "hear", "resize"]
HAPPENINGS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 30), TOKENS), max_size=25)


@given(
    count=st.integers(1, 20),
    capacity=st.sampled_from([0, 50_000, 1_000_000]),
    happenings=HAPPENINGS,
    seed=st.integers(0, 9),
    prompt=TOKENS,
    held=st.lists(st.integers(0, 3), min_size=20, max_size=20),
    answer_s=st.sampled_from([0.0, 3.7]),
)
def test_costs_and_choices_are_those_of_the_plain_formula_after_whatever_happens(
    count: int,
    capacity: int,
    happenings: list[tuple[str, int, int]],
    seed: int,
    prompt: int,
    held: list[int],
    answer_s: float,
) -> None:
    site = Site(count, capacity, seed)
    overlaps = [min(third * (prompt // 3), max(prompt - 1, 0)) for third in held[:count]]
    for kind, which, amount in [("settle", 0, 0), *happenings]:
        site.happens(kind, which, amount)
        site.check(Query(prompt, 100, now=site.now, answer_s=answer_s), overlaps)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("waiting", 3),
        ("decoding", 2),
        ("queued_tokens", 700),
        ("context_tokens", 9_900),
        ("capacity_tokens", 5_000),
        ("moved_at", 9.0),
        ("learned", RATES[3]),
    ],
)
def test_a_sum_that_is_set_from_outside_counts_at_the_next_decision(name: str, value: object) -> None:
    def load() -> ReplicaLoad:
        return ReplicaLoad("r", 10_000, queued_tokens=500, context_tokens=9_000, waiting=1, decoding=1, moved_at=9.9)

    query, loads, weights = Query(1000, 10, now=10.0), [load(), load()], Weights()
    before = costs_s(query, loads, [0, 0], weights)
    setattr(loads[1], name, value)
    after = costs_s(query, loads, [0, 0], weights)
    assert after == plain_costs_s(query, loads, [0, 0], weights)
    assert after[1] != before[1]


def test_overlaps_that_do_not_run_parallel_are_refused() -> None:
    with pytest.raises(ValueError, match="parallel"):
        costs_s(Query(10, 1), [ReplicaLoad("r")], [0, 0], Weights())
