"""Each policy chooses as its name says."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.cost import Rates, costs_s
from scoring.decision import Query
from scoring.ledger import ReplicaLoad
from scoring.policies import POLICIES, make_policy

NOTHING = Query(prompt_tokens=1000, output_tokens=100)


def loads_of(*running: int, queued: int = 0, decoding: int = 0, capacity: int = 0) -> list[ReplicaLoad]:
    return [
        ReplicaLoad(f"r{index}", capacity, queued, 0, waiting=count, decoding=decoding)
        for index, count in enumerate(running)
    ]


def chosen(
    name: str, loads: list[ReplicaLoad], overlaps: list[int], query: Query = NOTHING, times: int = 1
) -> list[int]:
    policy = make_policy(name, Random(7))
    return [policy.choose(query, loads, overlaps).index for _ in range(times)]


@pytest.mark.parametrize("name", POLICIES)
@given(
    running=st.lists(st.integers(0, 5), min_size=1, max_size=300),
    overlap=st.integers(0, 1000),
    session=st.sampled_from(["", "s"]),
)
def test_every_policy_chooses_one_of_the_candidates(name: str, running: list[int], overlap: int, session: str) -> None:
    loads = loads_of(*running)
    choice = make_policy(name, Random(1)).choose(Query(1000, 10, session), loads, [overlap] * len(loads))
    assert 0 <= choice.index < len(loads)
    assert choice.why


def test_kv_prefers_the_warm_replica_until_its_queue_outweighs_the_cache() -> None:
    loads = loads_of(0, 0)
    assert chosen("kv", loads, [0, 800]) == [1]
    loads[1].queued_tokens = 1500
    assert chosen("kv", loads, [0, 800]) == [1]  # 1500 queued tokens cost less than twice 800 missed ones
    loads[1].queued_tokens = 1700
    assert chosen("kv", loads, [0, 800]) == [0]


def test_kv_spares_decoding_streams_and_full_caches() -> None:
    loads = loads_of(0, 0)
    loads[0].decoding = 20
    assert chosen("kv", loads, [0, 0]) == [1]
    loads = loads_of(0, 0, capacity=10_000)
    loads[0].context_tokens = 9_900
    assert chosen("kv", loads, [0, 0]) == [1]


@pytest.mark.parametrize("name", ["kv", "least_load", "random", "round_robin"])
def test_equals_share_the_requests(name: str) -> None:
    counts = Counter(chosen(name, loads_of(0, 0, 0, 0), [0, 0, 0, 0], times=2000))
    assert all(400 < counts[index] < 600 for index in range(4))


def test_among_equal_costs_fewer_open_requests_win() -> None:
    assert chosen("kv", loads_of(3, 1, 2), [0, 0, 0]) == [1]


def test_least_load_and_round_robin() -> None:
    assert chosen("least_load", loads_of(3, 1, 2), [1000, 0, 0]) == [1]
    turns = chosen("round_robin", loads_of(0, 0, 0), [0, 0, 0], times=6)
    assert sorted(turns[:3]) == [0, 1, 2]
    assert turns[:3] == turns[3:]


@given(st.integers(2, 20), st.integers(0, 19))
def test_a_session_stays_and_moves_only_when_its_replica_goes(count: int, gone: int) -> None:
    loads = loads_of(*range(count))
    sessions = [f"session {number}" for number in range(40)]
    homes = {s: loads[chosen("session", loads, [0] * count, Query(10, 10, s))[0]].name for s in sessions}
    left = [load for load in loads if load.name != f"r{gone}"]
    for session in sessions:
        again = left[chosen("session", left, [0] * len(left), Query(10, 10, session))[0]].name
        assert again == homes[session] or homes[session] == f"r{gone}"


def test_requests_without_a_session_go_by_load() -> None:
    assert chosen("session", loads_of(3, 0, 2), [0, 0, 0]) == [1]


def test_an_unknown_policy_is_told_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="least_load"):
        make_policy("best", Random(0))


def test_the_cost_is_the_formula() -> None:
    load = ReplicaLoad("r", capacity_tokens=5_000, queued_tokens=400, context_tokens=4_500, waiting=1, decoding=2)
    rates = Rates(prefill_tokens_per_s=1000, miss_weight=2, interference=0.5, stream_cost_s=0.001)
    (cost,) = costs_s([load], [300], 1000, 50, rates)
    own = (400 + 2 * 700) / 1000
    harm = 2 * (0.5 * 700 / 1000 + 0.001 * 50)
    pressure = (4_500 + 1_000 - 5_000) / 1000
    assert cost == pytest.approx(own + harm + pressure, abs=1e-5)
