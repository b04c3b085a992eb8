"""Peers' published rules, against examples worked by hand from the published text."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from scoring.decision import Choice, Query
from scoring.ledger import ReplicaLoad
from scoring.policies import make_policy


def decide(name: str, loads: list[ReplicaLoad], overlaps: list[int], prompt: int = 1000, seed: int = 1) -> Choice:
    return make_policy(name, Random(seed)).choose(Query(prompt, 100), loads, overlaps)


def all_chosen(name: str, loads: list[ReplicaLoad], overlaps: list[int], prompt: int = 1000) -> set[int]:
    """Whoever is chosen under any of many seeds: ties are broken at random."""
    return {decide(name, loads, overlaps, prompt, seed).index for seed in range(60)}


def busy(*running: int) -> list[ReplicaLoad]:
    return [ReplicaLoad(f"r{number}", waiting=count) for number, count in enumerate(running)]


# NVIDIA Dynamo: max(active prefill + prompt - overlap, 0) + active KV + prompt.


def test_dynamo_adds_what_is_to_be_computed_to_what_is_held() -> None:
    loads = [
        ReplicaLoad("r0", queued_tokens=600, context_tokens=2000, waiting=1),
        ReplicaLoad("r1", queued_tokens=0, context_tokens=3000, decoding=2),
        ReplicaLoad("r2", queued_tokens=0, context_tokens=2900, decoding=1),
    ]
    choice = decide("like_dynamo", loads, [800, 480, 0])
    assert choice.costs == [800 + 3000, 520 + 4000, 1000 + 3900]
    assert choice.index == 0


def test_dynamo_leaves_a_warm_replica_once_its_load_outweighs_the_overlap() -> None:
    loads = [ReplicaLoad("r0", context_tokens=700), ReplicaLoad("r1")]
    assert decide("like_dynamo", loads, [800, 0]).index == 0
    loads[0].context_tokens = 900
    assert decide("like_dynamo", loads, [800, 0]).index == 1
    loads[0].context_tokens = 800
    assert all_chosen("like_dynamo", loads, [800, 0]) == {0, 1}


# SGLang: uneven if spread > 64 and highest > 1.5 * lowest; else the best match above 30 %; else the fewest requests.


def test_sglang_follows_the_longest_match_above_its_threshold() -> None:
    assert decide("like_sglang", busy(9, 0, 1), [400, 0, 399]).index == 0
    assert decide("like_sglang", busy(9, 0, 1), [301, 0, 0]).index == 0
    assert decide("like_sglang", busy(9, 0, 1), [300, 0, 0]).index == 1
    assert all_chosen("like_sglang", busy(9, 0, 1), [500, 0, 500]) == {0, 2}


def test_sglang_goes_by_load_only_when_both_thresholds_are_passed() -> None:
    assert decide("like_sglang", busy(64, 0), [900, 0]).index == 0  # the spread is not above 64
    assert decide("like_sglang", busy(65, 0), [900, 0]).index == 1
    assert decide("like_sglang", busy(210, 140), [900, 0]).index == 0  # 210 is not above 1.5 * 140
    assert decide("like_sglang", busy(211, 140), [900, 0]).index == 1


# llm-d, optimized baseline: those with 80 % of the prompt unless 18 s * 15928 tokens/s behind; fewest uncached tokens.


def test_llmd_keeps_to_the_replicas_that_hold_four_fifths_of_the_prompt() -> None:
    loads = [
        ReplicaLoad("r0", queued_tokens=50_000),
        ReplicaLoad("r1", queued_tokens=40_000),
        ReplicaLoad("r2", queued_tokens=0),
    ]
    choice = decide("like_llmd", loads, [900, 800, 799])
    assert choice.costs == [50_100, 40_200, 201]
    assert choice.index == 1
    assert decide("like_llmd", loads, [790, 700, 0]).index == 2  # nobody holds enough
    assert decide("like_llmd", [loads[0], loads[1]], [900, 900]).index == 1


def test_llmd_lets_go_when_the_warm_replicas_are_eighteen_seconds_behind() -> None:
    loads = [ReplicaLoad("r0", queued_tokens=286_704 + 5), ReplicaLoad("r1", queued_tokens=5)]
    assert decide("like_llmd", loads, [900, 0]).index == 0
    loads[0].queued_tokens += 1
    assert decide("like_llmd", loads, [900, 0]).index == 1


def test_llmd_takes_no_prompt_without_tokens_for_warm() -> None:
    assert all_chosen("like_llmd", busy(0, 0), [0, 0], prompt=0) == {0, 1}


# llm-d, weighted scorers: 2 * queue (min-max) + 2 * free KV + 3 * share held; costs are 7 minus that.


def test_llmd_scorers_add_up() -> None:
    loads = [
        ReplicaLoad("r0", capacity_tokens=10_000, context_tokens=5_000, waiting=4, decoding=9),
        ReplicaLoad("r1", capacity_tokens=10_000, context_tokens=2_000, waiting=1),
        ReplicaLoad("r2", capacity_tokens=10_000, context_tokens=9_000, waiting=0),
    ]
    choice = decide("like_llmd_scorers", loads, [1000, 500, 0])
    scores = [2 * 0 + 2 * 0.5 + 3 * 1, 2 * 0.75 + 2 * 0.8 + 3 * 0.5, 2 * 1 + 2 * 0.1 + 3 * 0]
    assert choice.costs == pytest.approx([7 - score for score in scores])
    assert choice.index == 1


def test_llmd_scorers_give_equal_queues_the_same_score() -> None:
    loads = [ReplicaLoad("r0", waiting=3), ReplicaLoad("r1", waiting=3)]
    choice = decide("like_llmd_scorers", loads, [0, 250])
    assert choice.costs == pytest.approx([3.0, 2.25])


# AIBrix: the best match with at most mean + 1 sigma requests; very uneven loads: only the least loaded can match.


def test_aibrix_takes_the_best_match_that_is_not_too_busy() -> None:
    # Mean 4, standard deviation sqrt((16 + 4 + 4 + 16) / 5) = 2.83: up to 6.83.
    loads = busy(8, 6, 4, 2, 0)
    assert decide("like_aibrix", loads, [900, 500, 400, 0, 0]).index == 1
    assert decide("like_aibrix", loads, [900, 0, 0, 0, 0]).index == 4
    assert decide("like_aibrix", loads, [0, 0, 0, 0, 0]).index == 4


def test_aibrix_weighs_requests_among_equal_percentages() -> None:
    assert decide("like_aibrix", busy(2, 1, 0), [509, 500, 0]).index == 1  # both 50 %
    assert decide("like_aibrix", busy(2, 1, 0), [510, 500, 0]).index == 1  # 51 %, but above 1 + 0.82 requests
    assert all_chosen("like_aibrix", busy(1, 1, 2), [500, 500, 0]) == {0, 1}


def test_aibrix_matches_only_the_least_loaded_when_loads_are_very_uneven() -> None:
    # Mean 4.5: 12 > 2 * 5.5 and 12 - 2 >= 8.
    assert decide("like_aibrix", busy(12, 2, 2, 2), [0, 100, 200, 0]).index == 2
    assert decide("like_aibrix", busy(12, 3, 1, 2), [0, 900, 0, 0]).index == 2
    assert decide("like_aibrix", busy(10, 3, 1, 2), [0, 900, 0, 0]).index == 1  # 10 is not above 2 * 5


# Prefix alone.


def spread(name: str) -> Counter[int]:
    """Where 400 prompts of 40 blocks go that share their first block. Each leaves it there for good; at most 16 are
    open at a time.
    """
    policy, loads, block = make_policy(name, Random(2)), busy(*[0] * 8), 16
    warm: set[int] = set()
    open_now, counts = [], Counter[int]()
    for _ in range(400):
        overlaps = [block if number in warm else 0 for number in range(8)]
        index = policy.choose(Query(40 * block, 100, prefix=9), loads, overlaps).index
        open_now.append(loads[index].book(40 * block, 40 * block - overlaps[index]))
        warm.add(index)
        counts[index] += 1
        if len(open_now) > 16:
            open_now.pop(0).release()
    return counts


def test_by_longest_prefix_alone_all_that_share_a_first_block_go_to_one_replica() -> None:
    assert list(spread("longest_prefix").values()) == [400]
    assert list(spread("sticky").values()) == [400]  # here, even the first two
    for name in ("kv", "prefix_hash", "like_dynamo", "like_llmd", "like_sglang"):
        assert max(spread(name).values()) <= 1.5 * 50
