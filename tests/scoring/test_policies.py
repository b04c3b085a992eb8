"""Each policy chooses as its name says."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.cost import Weights, costs_s
from scoring.decision import Query
from scoring.learned import Learned
from scoring.ledger import ReplicaLoad
from scoring.policies import POLICIES, make_policy

NOTHING = Query(prompt_tokens=1000, output_tokens=100)


def loads_of(*running: int, queued: int = 0, decoding: int = 0, capacity: int = 0) -> list[ReplicaLoad]:
    return [
        ReplicaLoad(f"r{index}", capacity, queued, 0, waiting=count, decoding=decoding)
        for index, count in enumerate(running)
    ]


def sums(load: ReplicaLoad) -> tuple[object, ...]:
    """All that a load says."""
    counts = (load.capacity_tokens, load.context_tokens, *load.counts(), load.served, len(load.silent))
    return load.name, *counts, load.moved_at, load.learned, load.changed, load.taught


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
    prefix=st.integers(0, 2**64 - 1),
    prompt=st.sampled_from([0, 1, 1000]),
)
def test_every_policy_chooses_one_of_the_candidates_and_changes_nothing(
    name: str, running: list[int], overlap: int, session: str, prefix: int, prompt: int
) -> None:
    loads, overlaps = loads_of(*running, capacity=5000), [min(overlap, prompt)] * len(running)
    before = (list(map(sums, loads)), list(overlaps))
    choice = make_policy(name, Random(1)).choose(Query(prompt, 10, session, prefix), loads, overlaps)
    assert 0 <= choice.index < len(loads)
    assert choice.why
    assert choice.costs is None or len(choice.costs) == len(loads)
    assert (list(map(sums, loads)), overlaps) == before


@pytest.mark.parametrize("name", POLICIES)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1000)), min_size=1, max_size=8), st.integers(0, 99))
def test_the_same_seed_chooses_the_same(name: str, known: list[tuple[int, int]], seed: int) -> None:
    loads, overlaps = loads_of(*[running for running, _ in known]), [overlap for _, overlap in known]
    query = Query(1000, 10, "s", 77)
    once, again = (make_policy(name, Random(seed)) for _ in range(2))
    for _ in range(5):
        assert once.choose(query, loads, overlaps).index == again.choose(query, loads, overlaps).index


def test_kv_prefers_the_warm_replica_until_its_queue_outweighs_the_cache() -> None:
    loads = loads_of(0, 0)
    assert chosen("kv", loads, [0, 800]) == [1]
    loads[1].waiting, loads[1].queued_tokens = 1, 1650
    assert chosen("kv", loads, [0, 800]) == [1]  # while somebody is idle, a missed token weighs 2.2
    loads[1].queued_tokens = 1800
    assert chosen("kv", loads, [0, 800]) == [0]


def test_what_most_hold_counts_as_cached_by_all() -> None:
    """Or a replica that joins would stay cold for as long as any other is idle. But nobody pays much for it."""
    assert set(chosen("kv", loads_of(0, 0, 0), [800, 800, 0], times=50)) == {0, 1, 2}
    assert set(chosen("kv", loads_of(0, 0), [800, 0], times=50)) == {0}
    long = Query(50_000, 10)
    assert set(chosen("kv", loads_of(0, 0, 0), [40_000, 40_000, 0], long, times=50)) == {0, 1}


def test_kv_follows_a_prefix_further_the_more_wait_everywhere() -> None:
    def follows(waiting: int) -> bool:
        loads = loads_of(waiting, waiting, queued=waiting * 1000)
        loads[1].waiting, loads[1].queued_tokens = waiting + 1, waiting * 1000 + 3000
        return chosen("kv", loads, [0, 1000]) == [1]

    assert [follows(waiting) for waiting in (0, 1, 2)] == [False, True, True]


def test_kv_sees_how_far_a_queue_is_and_which_replica_is_slow() -> None:
    loads = loads_of(1, 1, queued=8000)
    loads[0].moved_at, loads[1].moved_at = 10.0, 10.7
    assert chosen("kv", loads, [0, 0], Query(1000, 10, now=10.9)) == [0]
    assert chosen("kv", loads, [0, 0], Query(1000, 10, now=12.5)) == [1]  # the first is more overdue
    loads = loads_of(0, 0)
    loads[0].learned = Learned(1 / 4000)
    assert chosen("kv", loads, [0, 0]) == [1]
    assert chosen("kv", loads, [600, 0]) == [0]


def test_kv_spares_decoding_streams_and_full_caches() -> None:
    loads = loads_of(0, 0)
    loads[0].decoding = 20
    assert chosen("kv", loads, [0, 0]) == [1]
    loads = loads_of(0, 0, capacity=10_000)
    loads[0].context_tokens = 9_900
    assert chosen("kv", loads, [0, 0]) == [1]


@pytest.mark.parametrize(
    "name",
    [
        *("kv", "least_load", "power_of_two", "random", "round_robin", "session", "sticky", "prefix_hash"),
        *("longest_prefix", "like_dynamo", "like_sglang", "like_llmd", "like_llmd_scorers", "like_aibrix"),
    ],
)
def test_equals_share_the_requests(name: str) -> None:
    counts = Counter(chosen(name, loads_of(0, 0, 0, 0), [0, 0, 0, 0], times=2000))
    assert all(400 < counts[index] < 600 for index in range(4))


def test_among_equal_costs_fewer_open_requests_win() -> None:
    assert chosen("kv", loads_of(3, 1, 2), [0, 0, 0]) == [1]


def test_power_of_two_never_takes_the_busiest_and_mostly_the_least_busy() -> None:
    counts = Counter(chosen("power_of_two", loads_of(3, 1, 2), [0, 0, 0], times=3000))
    assert counts[0] == 0
    assert 1850 < counts[1] < 2150  # of three pairs, two hold it
    assert chosen("power_of_two", loads_of(3), [0]) == [0]


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
    load.learned = Learned(1 / 1000, slowdown=0.1)
    idle = ReplicaLoad("idle")
    idle.waiting = 3
    weights = Weights(miss=1.5, queue=0.6, own_queue=0.2, interference=0.5, stream_share=0.01)
    cost, _ = costs_s(Query(1000, 50, now=0.1, answer_s=5.0), [load, idle], [300, 0], weights)
    wait, prefill = 0.4 * 1.2 - 0.1, 0.7 * 1.2
    mean_pace = 2 / (1000 + 8000)
    others = 700 * mean_pace * (1.5 + 0.6 * 1 + 0.2 * 1)
    harm = 2 * (0.5 * prefill + 0.001 * 50)
    pressure = (4_500 + 1_000 - 5_000) / 1000
    assert cost == pytest.approx(wait + prefill + others + harm + pressure, abs=1e-5)


@given(st.integers(1, 20), st.integers(0, 100_000), st.integers(0, 50), st.floats(0, 0.1), st.floats(-10, 1000))
def test_the_wait_in_the_cost_is_the_ledgers(
    waiting: int, queued: int, decoding: int, slowdown: float, elapsed: float
) -> None:
    """It is written out there, and what of it does not depend on the time is in the load's standing."""
    load = ReplicaLoad("r", queued_tokens=queued, waiting=waiting, decoding=decoding, moved_at=1000.0)
    load.learned, now = Learned(1 / 1000, slowdown), 1000.0 + elapsed
    weights = Weights(miss=0, queue=0, own_queue=0, interference=0, stream_share=0)
    (cost,) = costs_s(Query(100, 1, now=now), [load], [0], weights)
    assert cost == pytest.approx(load.wait_s(now) + load.learned.work_s(100, decoding), rel=1e-6, abs=1e-4)


@pytest.mark.parametrize(
    "module", ["policies", "kv", "by_load", "hashing", "peers", "ties", "cost", "standing", "decision"]
)
def test_policies_are_pure(module: str) -> None:
    source = (Path(__file__).parents[2] / "scoring" / f"{module}.py").read_text()
    named = {node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    plain = {alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names}
    allowed = {"__future__", "collections", "dataclasses", "math", "msgspec", "random", "scoring", "typing", "xxhash"}
    assert {name.partition(".")[0] for name in named | plain} <= allowed  # nothing to read a clock or do I/O with
