"""Rescoring: regret by hand, and over the receipts of a real router."""

from __future__ import annotations

import pytest

from loadgen.compare.receipts import ReceiptsError, Recorded, read_receipts
from loadgen.compare.rescoring import Assumed, Rescored, rescore
from loadgen.compare.resimulation import fleet_of, last_attempts, resimulate
from loadgen.compare.surroundings import Surroundings
from scoring.learned import Learned
from scoring.policies import POLICIES
from tests.loadgen.compare.recorded import PACE, answered_by_a_router, receipt

IDLE = (0, 0, 0)
ASSUMED = Assumed(256, prior=Learned(seconds_per_token=PACE))


def rescored(receipts: list[Recorded], *policies: str) -> dict[str, Rescored]:
    return rescore(receipts, policies, ASSUMED)[0]


def test_regret_by_hand() -> None:
    # Idle replicas; a holds 600 of 1000 tokens: 0.4 s there, 1 s on b. Recorded was b, though it took 1.3 s.
    said = receipt(0.0, [600, 0], [IDLE, IDLE], 1, ttft_s=1.3)
    found = rescored([said], "longest_prefix")
    recorded, other = found["recorded"], found["longest_prefix"]
    assert recorded.agreement == 1.0
    assert recorded.predicted_ttft_mean_s == pytest.approx(1.0, rel=0.02)
    assert recorded.regret_mean_s == pytest.approx(0.6, rel=0.02)
    assert recorded.regretted == 1.0
    assert recorded.expected_ttft_mean_s == recorded.agreed_ttft_mean_s == 1.3
    assert recorded.realised_regret_mean_s == pytest.approx(0.9, rel=0.02)
    assert other.agreement == 0.0
    assert other.predicted_ttft_mean_s == pytest.approx(0.4, rel=0.02)
    assert other.regret_mean_s == other.regretted == 0.0
    assert other.expected_ttft_mean_s == pytest.approx(0.7, rel=0.02)  # 0.3 s late there, too
    assert other.agreed_ttft_mean_s is None
    assert other.hit_rate == pytest.approx(0.6)


def test_a_queue_counts_as_much_as_it_takes() -> None:
    said = receipt(0.0, [1000, 0], [(2500, 1, 0), IDLE], 0)
    found = rescored([said], "longest_prefix", "least_load")
    # 2500 tokens queued and one to compute, against 1000 at once.
    assert found["longest_prefix"].regret_mean_s == pytest.approx(1.501, rel=0.02)
    assert found["least_load"].regret_mean_s == 0.0


def test_recorded_costs_are_judged_in_their_own_unit() -> None:
    said = receipt(0.0, [600, 0], [IDLE, IDLE], 1, costs=(2.0, 5.0))
    found = rescored([said], "longest_prefix")
    assert (found["recorded"].cost_mean, found["recorded"].cost_regret_mean) == (5.0, 3.0)
    assert (found["longest_prefix"].cost_mean, found["longest_prefix"].cost_regret_mean) == (2.0, 0.0)
    assert rescored([receipt(0.0, [0], [IDLE], 0)])["recorded"].cost_mean is None


def test_the_judge_learns_each_replicas_pace_from_what_happened() -> None:
    # a is four times as quick as b, and both are a tenth of what is assumed.
    several = [
        receipt(n * 10.0, [0, 0], [IDLE, IDLE], n % 2, ttft_s=(0.025, 0.1)[n % 2], prompt=1000 + n) for n in range(40)
    ]
    found, prediction = rescore(several, ["least_load"], ASSUMED)
    assert prediction.learned["a"].ttft_s(1000) == pytest.approx(0.025, rel=0.1)
    assert prediction.learned["b"].ttft_s(1000) == pytest.approx(0.1, rel=0.1)
    assert prediction.judged == 40
    assert found["recorded"].regretted == pytest.approx(0.5, abs=0.1)
    assert prediction.error_p50_s == pytest.approx(0.0, abs=0.01)


def test_loads_are_put_together_from_the_receipts_before() -> None:
    around = Surroundings(Learned(), capacity_tokens=9999)
    first = receipt(0.0, [0, 0], [IDLE, IDLE], 0, prompt=700)
    second = receipt(0.9, [0, 0], [(0, 0, 1), IDLE], 0, prompt=300, outcome=None, duration_s=None, ttft_s=None)
    third = receipt(5.0, [0, 0], [(300, 1, 0), IDLE], 1)
    seen = []
    for each in (first, second, third):
        load = around.loads(each)[0]
        seen.append((load.context_tokens, load.served, load.queued_tokens, load.waiting, load.decoding))
        around.sent(each)
    # The first ends after 0.7 + 0.5 s, the second had not when this was written.
    assert seen == [(0, 0, 0, 0, 0), (700, 0, 0, 0, 1), (300, 1, 300, 1, 0)]
    assert load.capacity_tokens == 9999
    assert load.moved_at == 0.9  # since then there is a queue


def test_policies_that_hash_what_receipts_do_not_hold_are_refused() -> None:
    said = [receipt(0.0, [0, 0], [IDLE, IDLE], 0)]
    with pytest.raises(ReceiptsError, match="sticky hashes a request's prefix"):
        rescored(said, "sticky")
    with pytest.raises(ReceiptsError, match="session hashes a request's session"):
        resimulate(said, ["session"], 3, ASSUMED)
    assert rescored([receipt(0.0, [0, 0], [IDLE, IDLE], 0, prefix=7)], "sticky")["sticky"].decisions == 1


def test_a_real_routers_receipts_are_rescored_under_every_policy() -> None:
    receipts, notes = read_receipts(answered_by_a_router("least_load", 3), "receipts")
    assert not notes
    assert len(receipts) > 10
    keyless = [name for name in POLICIES if name not in ("session", "sticky", "prefix_hash")]
    found, prediction = rescore(receipts, keyless, ASSUMED)
    assert list(found) == ["recorded", *keyless]
    for name, policy in found.items():
        assert policy.decisions == policy.judged == len(receipts), name
        assert policy.regret_mean_s is not None
        assert policy.agreement is not None
        assert policy.regret_mean_s >= 0
        assert 0 < policy.agreement <= 1
    recorded = found["recorded"]
    happened = [each.happened_s or 0.0 for each in receipts]
    assert recorded.expected_ttft_mean_s == pytest.approx(sum(happened) / len(happened))
    assert recorded.agreement == 1.0
    longest = found["longest_prefix"].hit_rate
    assert longest is not None
    assert all((policy.hit_rate or 0.0) <= longest for policy in found.values())
    assert set(prediction.learned) == {"r0", "r1", "r2"}
    assert rescore(receipts, keyless, ASSUMED)[0] == found  # equal seeds


def test_the_recording_policy_agrees_with_itself_where_no_tie_decides() -> None:
    receipts, _ = read_receipts(answered_by_a_router("least_load", 3), "receipts")
    open_requests = [[load[1] + load[2] for load in each.loads] for each in receipts]
    clear = [each for each, counts in zip(receipts, open_requests, strict=True) if counts.count(min(counts)) == 1]
    assert clear
    assert rescored(clear, "least_load")["least_load"].agreement == 1.0


def test_a_fleet_of_another_size_keeps_who_came_first_and_adds_new_ones() -> None:
    receipts = [receipt(0.0, [0, 0], [IDLE, IDLE], 0), receipt(1.0, [0], [IDLE], 0, names="new0")]
    assert fleet_of(receipts, 1) == ["a"]
    assert fleet_of(receipts, 3) == ["a", "b", "n"]
    assert fleet_of([receipt(0.0, [0, 0], [IDLE, IDLE], 0)], 4) == ["a", "b", "new0", "new1"]


def test_queues_follow_from_the_policys_own_choices() -> None:
    # Two prompts of 1 s at once, on a pace of 1 ms a token: one waits for the other unless there is a second replica.
    receipts = [receipt(0.0, [0], [IDLE], 0, ttft_s=None), receipt(0.0, [0], [(1000, 1, 0)], 0, ttft_s=None)]
    alone, pair = (resimulate(receipts, ["least_load"], count, ASSUMED)["least_load"] for count in (1, 2))
    assert alone.ttft_mean_s == pytest.approx(1.5)
    assert alone.requests_by_replica == {"a": 2}
    assert pair.ttft_mean_s == pytest.approx(1.0)
    assert pair.requests_by_replica == {"a": 1, "new0": 1}
    assert alone.regret_mean_s == 0.0


def test_new_replicas_hold_nothing_and_lost_ones_take_their_caches_along() -> None:
    receipts = [receipt(n * 10.0, [0, 800], [IDLE, IDLE], 1) for n in range(5)]
    assert resimulate(receipts, ["longest_prefix"], 4, ASSUMED)["longest_prefix"].hit_rate == pytest.approx(0.8)
    assert resimulate(receipts, ["longest_prefix"], 1, ASSUMED)["longest_prefix"].hit_rate == 0.0


def test_a_request_that_was_tried_twice_is_simulated_once() -> None:
    tries = [
        receipt(0.0, [0, 0], [IDLE, IDLE], 0, request_id="x", ttft_s=None),
        receipt(0.1, [0], [IDLE], 0, names="b", request_id="x", attempts=2),
    ]
    assert last_attempts(tries) == tries[1:]
    assert resimulate(tries, ["kv"], 2, ASSUMED)["kv"].requests == 1


def test_a_real_routers_receipts_on_a_larger_and_on_a_smaller_fleet() -> None:
    receipts, _ = read_receipts(answered_by_a_router("least_load", 3), "receipts")
    for replicas in (1, 3, 6):
        found = resimulate(receipts, ["kv", "least_load"], replicas, ASSUMED)
        for policy in found.values():
            assert policy.requests == len(receipts)
            assert sum(policy.requests_by_replica.values()) == len(receipts)
            assert len(policy.requests_by_replica) == replicas
    one = resimulate(receipts, ["kv"], 1, ASSUMED)["kv"].ttft_mean_s
    six = resimulate(receipts, ["kv"], 6, ASSUMED)["kv"].ttft_mean_s
    assert one is not None
    assert six is not None
    assert six < one
