"""A simulated fleet: times by hand, leaps that change nothing, incidents that lose nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.traces import TraceRequest
from loadgen.virtual.channel import Line
from loadgen.virtual.fleet import FleetSetup, Outcome, VirtualFleet
from loadgen.virtual.incidents import Incident, parse_incident
from loadgen.virtual.prompts import Job, asks
from replica.scheduler import SchedulerLimits
from replica.simulated import TimingModel
from scoring.policies import make_policy
from tests.loadgen.virtual.asks import in_order, request, requests

PREFILL = FleetSetup(replicas=1, capacity_tokens=512 * 100, prefill_only=True, prefill_rate=1000.0)
FULL = FleetSetup(
    replicas=2,
    capacity_tokens=512 * 12,
    prefill_only=False,
    prefill_rate=8000.0,
    limits=SchedulerLimits(max_batched_tokens=1024, max_running=4),
)
INCIDENTS = ((), ("0.9:slow:0:5", "1.6:slow:0:1"), ("0.9:kill:0",), ("0.6:add", "1.1:remove:0"))


def fleet_of(setup: FleetSetup, policy: str = "kv") -> VirtualFleet:
    return VirtualFleet(setup, make_policy(policy, Random(setup.seed)))


def run(setup: FleetSetup, asked: Sequence[TraceRequest], policy: str = "kv") -> Outcome:
    return fleet_of(setup, policy).run(asks(asked, None if setup.prefill_only else setup.block_tokens))


def incidents(*texts: str) -> tuple[Incident, ...]:
    return tuple(map(parse_incident, texts))


def fate(job: Job) -> tuple[object, ...]:
    return job.replica, job.first_token_s, job.finished_s, job.cached_tokens, job.found_blocks, job.attempts, job.error


# Prefill-only.


def test_prefill_only_requests_wait_for_each_other_and_find_what_those_before_left() -> None:
    jobs = run(PREFILL, [request(0, 1100), request(0.5, 2000), request(9, 1100)]).jobs
    # 1100 tokens are 3 blocks, of which the third is the same in the second prompt (an id names a whole prefix).
    assert [job.found_blocks for job in jobs] == [0, 3, 3]
    assert [job.first_token_s for job in jobs] == pytest.approx([1.1, 1.1 + (2000 - 3 * 512) / 1000, 9.001])
    assert all(job.finished_s == job.first_token_s for job in jobs)


def test_blocks_become_resident_when_their_prefill_ends_and_go_when_their_room_is_needed() -> None:
    setup = replace(PREFILL, capacity_tokens=512 * 4)
    asked = [request(0, 2048, conversation=number) for number in (0, 0, 1, 0)]
    assert [job.found_blocks for job in run(setup, asked).jobs] == [0, 4, 0, 0]


def test_of_a_prompt_that_is_found_whole_one_token_is_computed() -> None:
    outcome = run(PREFILL, [request(0, 700), request(5, 700)])
    assert [job.found_blocks for job in outcome.jobs] == [0, 2]
    assert outcome.jobs[1].first_token_s == pytest.approx(5.001)
    assert outcome.replicas[0].computed_tokens == 701


# The full model.


def test_a_lone_request_takes_the_time_that_the_timing_model_says() -> None:
    timing = TimingModel(step_s=1.0, prefill_rate=1000.0, decode_s=0.25, context_token_s=0.0)
    setup = replace(FULL, replicas=1, timing=timing)
    job = run(setup, [request(3, 1500, output=3)]).jobs[0]
    first = 3 + (1 + 1.024) + (1 + 0.476)
    assert (job.first_token_s, job.finished_s) == pytest.approx((first, first + 2 * 1.25))


def test_a_clump_of_short_prompts_meets_in_one_step() -> None:
    jobs = run(replace(FULL, replicas=1), [request(1, 100, 2, number) for number in range(4)]).jobs
    assert len({job.first_token_s for job in jobs}) == 1


# Both.


@settings(max_examples=60, deadline=None)
@given(requests, st.sampled_from(INCIDENTS), st.booleans(), st.sampled_from([Line(), Line(0.1), Line(0.05, 0.5)]))
def test_every_request_is_served_once_whatever_befalls_the_fleet(
    asked: list[TraceRequest], befalls: tuple[str, ...], prefill_only: bool, line: Line
) -> None:
    setup = replace(FULL, incidents=incidents(*befalls), line=line, prefill_only=prefill_only)
    fleet = fleet_of(setup)
    outcome = fleet.run(asks(asked, None if prefill_only else setup.block_tokens))
    assert all(not job.error and job.finished_s is not None for job in outcome.jobs)
    for seat in fleet.router.seats:
        load = seat.load
        assert (load.queued_tokens, load.context_tokens, load.waiting, load.decoding) == (0, 0, 0, 0)
    for member in fleet.members:
        assert not member.bookings
        member.replica.pool.check_integrity()


@settings(max_examples=30, deadline=None)
@given(requests, st.booleans(), st.sampled_from([Line(), Line(0.3), Line(0.2, 0.4)]))
def test_equal_set_ups_give_equal_outcomes(asked: list[TraceRequest], prefill_only: bool, line: Line) -> None:
    setup = replace(FULL, line=line, prefill_only=prefill_only)
    one, other = run(setup, asked, "random"), run(setup, asked, "random")
    assert [fate(job) for job in one.jobs] == [fate(job) for job in other.jobs]
    assert one.replicas == other.replicas


@pytest.mark.parametrize("prefill_only", [True, False])
@pytest.mark.parametrize("line", [Line(), Line(0.2)])
def test_in_the_end_the_router_knows_what_every_replica_holds(prefill_only: bool, line: Line) -> None:
    setup = replace(FULL, prefill_only=prefill_only, line=line)
    asked = in_order([request(number * 0.2, 300 + 150 * number, 30, number % 3) for number in range(14)])
    fleet = fleet_of(setup)
    fleet.run(asks(asked, None if prefill_only else setup.block_tokens))
    assert any(member.replica.pool.resident for member in fleet.members)
    for member in fleet.members:
        held = [key for _, keys in fleet.router.held(member.seat) for key in keys]
        assert len(held) == member.replica.pool.resident
        assert all(member.replica.pool.holds(held))


def test_lost_events_are_repaired_by_a_snapshot() -> None:
    setup = replace(PREFILL, replicas=2, capacity_tokens=512 * 8, line=Line(0.01, 0.4), eviction="lru")
    asked = [request(float(number), 1024 + 512 * (number % 3), conversation=number % 5) for number in range(60)]
    facts = run(setup, asked).replicas
    assert sum(each.batches_lost for each in facts) > 5
    assert sum(each.snapshots for each in facts) > 2


def test_a_router_that_hears_late_finds_less_than_one_that_hears_at_once() -> None:
    setup = replace(PREFILL, replicas=4, hints=False)
    asked = [request(2.0 * number, 2048, conversation=number % 2) for number in range(40)]
    at_once, late = run(setup, asked), run(replace(setup, line=Line(1000.0)), asked)
    assert sum(job.found_blocks for job in at_once.jobs) > sum(job.found_blocks for job in late.jobs)


def test_a_killed_replicas_requests_go_elsewhere_and_keep_their_first_token() -> None:
    asked = [request(0, 600, 150, 0), request(0, 600, 150, 1)]
    undisturbed = run(FULL, asked, "round_robin").jobs
    killed = run(replace(FULL, incidents=incidents("1:kill:0")), asked, "round_robin").jobs
    moved = [at for at, job in enumerate(killed) if job.attempts == 2]
    assert len(moved) == 1
    assert killed[moved[0]].first_token_s == undisturbed[moved[0]].first_token_s
    assert killed[moved[0]].replica == "replica-1"
    assert 0 < killed[moved[0]].produced < 150


def test_a_request_waits_for_its_first_token_and_then_decodes_in_the_routers_books() -> None:
    fleet = fleet_of(replace(FULL, replicas=1))
    seen: list[tuple[int, int, int]] = []
    load = fleet.router.seats[0].load
    load.changed = lambda load: seen.append((load.waiting, load.decoding, load.queued_tokens))
    fleet.run(asks([request(0, 600, 20)], FULL.block_tokens))
    assert seen == [(1, 0, 600), (0, 1, 0), (0, 0, 0)]


def test_a_removed_replica_finishes_what_it_has_and_gets_no_more() -> None:
    asked = [request(0.0, 600, 50, number) for number in range(4)] + [request(2.0, 600, 5, 9)] * 4
    jobs = run(replace(FULL, incidents=incidents("0.1:remove:0")), asked, "round_robin").jobs
    assert {job.replica for job in jobs[:4]} == {"replica-0", "replica-1"}
    assert {job.replica for job in jobs[4:]} == {"replica-1"}
    assert all(job.attempts == 1 for job in jobs)


def test_an_added_replica_gets_work_and_a_slow_one_takes_longer() -> None:
    asked = [request(float(number), 500, conversation=number) for number in range(6)]
    jobs = run(replace(PREFILL, incidents=incidents("2.5:add")), asked, "round_robin").jobs
    assert {job.replica for job in jobs[:3]} == {"replica-0"}
    assert {job.replica for job in jobs[3:]} == {"replica-0", "replica-1"}
    slow = run(replace(PREFILL, incidents=incidents("2.5:slow:0:4")), asked).jobs
    assert [job.first_token_s for job in slow[:4]] == pytest.approx([0.5, 1.5, 2.5, 5.0])


def test_without_a_replica_left_requests_fail_and_say_so() -> None:
    jobs = run(replace(PREFILL, incidents=incidents("1:kill:0")), [request(0.5, 5000), request(2, 10)]).jobs
    assert [job.error for job in jobs] == ["no replica is left"] * 2


def test_a_request_that_no_replica_can_hold_fails_and_the_others_do_not() -> None:
    for setup in (replace(PREFILL, capacity_tokens=512 * 4), replace(FULL, capacity_tokens=512 * 4)):
        large, small = run(setup, [request(0, 5000), request(0, 100, conversation=1)]).jobs
        assert "blocks of 512" in large.error or "KV blocks" in large.error
        assert small.finished_s is not None


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (("1:kill:7",), "no replica 7"),
        (("1:slow:1:2", "2:add"), "no replica 1 at 1 s"),
        (("2:slow:0:2", "1:kill:0"), "replica 0 is dead already at 2 s"),
    ],
)
def test_an_incident_that_befalls_nobody_is_an_error(texts: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        run(replace(PREFILL, incidents=incidents(*texts)), [request(0, 10)])


@pytest.mark.parametrize(
    "text", ["", "5", "5:melt:1", "x:kill:1", "5:kill", "5:slow:1:0", "-1:add", "5:kill:-2", "nan:add"]
)
def test_nonsense_is_no_incident(text: str) -> None:
    with pytest.raises(ValueError, match=r"SECONDS:slow|must be positive"):
        parse_incident(text)
