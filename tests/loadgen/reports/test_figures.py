"""The figures of a run: worked out by hand for a few records, and sane for any."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.records import Record
from loadgen.reports.figures import Setting, meets, run_report
from loadgen.reports.schema import Computed, Happened, Slo
from tests.loadgen.reports.samples import any_record, failure, plan, record, report, target


def test_every_figure_of_a_tiny_run_is_as_worked_out_by_hand() -> None:
    records = [
        record(due=0.0, lag=0.010, ttft=0.5, tpot=0.02, tokens=11, prompt=100, cached=60, replica="r0", predicted=50),
        record(due=1.0, lag=0.0, ttft=1.5, tpot=0.04, tokens=6, prompt=300, cached=100, replica="r0"),
        record(due=2.0, lag=0.002, ttft=2.5, tpot=0.10, tokens=2, prompt=100, cached=100, replica="r1", predicted=80),
        failure(due=3.0, end=5.0),
    ]
    found = report(records, Setting(regret_mean_s=0.25)).figures

    assert (found.requests, found.errors, found.duration_s) == (4, 1, 5.0)
    assert found.offered_rps == pytest.approx(4 / 10)
    assert found.achieved_rps == pytest.approx(3 / 5)
    assert found.ttft_mean_s == pytest.approx(1.5)
    assert found.ttft_p50_s == pytest.approx(1.5)
    assert found.ttft_p90_s == pytest.approx(2.3)
    assert found.ttft_p95_s == pytest.approx(2.4)
    assert found.ttft_p99_s == pytest.approx(2.48)
    assert found.ttft_sent_p50_s == pytest.approx(1.5)
    assert found.ttft_sent_p99_s == pytest.approx(1.5 + (2.498 - 1.5) * 0.98)
    assert found.tpot_mean_s == pytest.approx(0.16 / 3)
    assert found.tpot_p50_s == pytest.approx(0.04)
    # 10 gaps of 20 ms, 5 of 40 ms, one of 100 ms: rank 7.5 of 15 is 20 ms, rank 14.85 lies between the last two.
    assert found.itl_p50_s == pytest.approx(0.02)
    assert found.itl_p99_s == pytest.approx(0.04 + 0.06 * 0.85)
    assert found.e2e_mean_s == pytest.approx((0.7 + 1.7 + 2.6) / 3)
    assert found.e2e_p50_s == pytest.approx(1.7)
    # The third is late, the fourth failed.
    assert found.good == pytest.approx(2 / 4)
    assert found.goodput_rps == pytest.approx(2 / 5)
    assert found.hit_rate == pytest.approx(260 / 500)
    assert found.predicted_hit_rate == pytest.approx(130 / 200)
    # r0 computed 240 tokens, r1 none; requests are 2 and 1.
    assert found.balance_tokens == pytest.approx(2.0)
    assert found.balance_requests == pytest.approx(2 / 1.5)
    assert found.regret_mean_s == 0.25
    # Of 0, 0, 2 and 10 ms, in order.
    assert found.lag_p50_s == pytest.approx(0.001)
    assert found.lag_max_s == pytest.approx(0.010)
    assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens) == (500, 260, 19)


def test_the_late_client_cannot_flatter_the_server() -> None:
    found = report([record(lag=0.4, ttft=0.5)]).figures
    assert found.ttft_p50_s == pytest.approx(0.5)
    assert found.ttft_sent_p50_s == pytest.approx(0.1)


def test_a_replica_that_served_nothing_counts_in_the_balance() -> None:
    found = run_report(target(replicas=4), plan(), [record(replica="r0")], Setting()).figures
    assert found.balance_tokens == found.balance_requests == 4.0


def test_a_fleet_that_grew_is_as_large_as_the_names_seen() -> None:
    records = [record(replica=name) for name in ("r0", "r1", "r2")]
    assert run_report(target(replicas=2), plan(), records, Setting()).figures.balance_requests == 1.0


def test_records_without_replica_names_have_no_balance() -> None:
    found = run_report(target(replicas=2), plan(), [record(replica="")], Setting())
    assert found.figures.balance_tokens is None
    assert found.figures.balance_requests is None
    assert found.replicas == {}


def test_a_server_that_says_nothing_of_cached_tokens_has_no_hit_rate_rather_than_none() -> None:
    silent = record(replica="r0", cached=0, reports_cached=False)
    found = report([silent, silent])
    assert (found.figures.hit_rate, found.figures.balance_tokens, found.replicas["r0"].hit_rate) == (None, None, None)
    assert {window.hit_rate for window in found.timeline.windows} == {None}
    assert found.figures.balance_requests == 2.0
    # Some servers leave it out of an answer that had none cached.
    found = report([silent, record(replica="r0", cached=50)])
    assert found.figures.hit_rate == found.replicas["r0"].hit_rate == pytest.approx(50 / 200)
    assert found.figures.balance_tokens == 2.0


def test_a_closed_loop_has_no_offered_rate() -> None:
    found = run_report(target(), plan(concurrency=4), [record()], Setting())
    assert found.figures.offered_rps is None
    assert found.plan.closed_loop == 4


def test_facts_of_each_replica_are_its_own() -> None:
    records = [
        record(replica="r1", ttft=0.2, prompt=100, cached=40),
        record(replica="r1", ttft=0.4, prompt=100, cached=20),
        failure(replica="r1"),
        record(replica="r0", prompt=50),
    ]
    found = report(records).replicas
    assert list(found) == ["r0", "r1"]
    facts = found["r1"]
    assert (facts.requests, facts.errors, facts.prompt_tokens, facts.cached_tokens) == (3, 1, 200, 60)
    assert facts.hit_rate == pytest.approx(0.3)
    assert facts.ttft_p50_s == pytest.approx(0.3)


def test_replicas_come_in_the_order_that_people_count_in() -> None:
    found = report([record(replica=name) for name in ("r10", "r2", "b-1", "7")])
    assert list(found.replicas) == list(found.timeline.computed_tokens) == ["7", "b-1", "r2", "r10"]


@pytest.mark.parametrize(
    ("asked", "good"),
    [
        (record(ttft=2.0, tpot=0.05), True),
        (record(ttft=2.1), False),
        (record(tpot=0.06), False),
        (record(tokens=1, tpot=9.0), True),
        (failure(), False),
    ],
)
def test_a_request_is_good_when_it_came_whole_and_met_both_limits(asked: Record, good: bool) -> None:
    assert meets(asked, Slo(ttft_s=2.0, tpot_s=0.0501)) is good


def test_a_run_is_invalid_when_its_client_was_late() -> None:
    records = [record(lag=0.03, ttft=0.5)] * 100
    assert report(records, Setting(max_lag_s=0.04)).validity.valid
    invalid = report(records, Setting(max_lag_s=0.02)).validity
    assert not invalid.valid
    assert "lag p99 30.0 ms, allowed 20 ms" in invalid.reasons[0]
    assert "--max-lag" in invalid.reasons[0]


def test_a_run_without_requests_or_without_an_answer_is_invalid() -> None:
    assert "no request was due" in report([]).validity.reasons[0]
    assert "every request failed" in report([failure()]).validity.reasons[0]
    assert report([failure(), record()]).validity.valid


def test_the_most_frequent_error_messages_are_kept() -> None:
    records = [failure(error=f"error {index}") for index in range(50)] + [failure(error="often")] * 3
    found = report(records).error_messages
    assert len(found) == 20
    assert next(iter(found.items())) == ("often", 3)


def test_events_come_by_time() -> None:
    events = (Happened(5.0, "add"), Happened(2.0, "kill r1"))
    assert [event.what for event in report([record()], Setting(events=events)).events] == ["kill r1", "add"]


@settings(deadline=None)
@given(st.lists(any_record(), max_size=12), st.floats(0, 100))
def test_every_figure_is_none_or_finite(records: list[Record], duration_s: float) -> None:
    found = run_report(target(), plan(duration_s), records, Setting())
    for name, value in msgspec.structs.asdict(found.figures).items():
        assert value is None or math.isfinite(value), name
    for window in found.timeline.windows:
        for name, value in msgspec.structs.asdict(window).items():
            assert value is None or math.isfinite(value), name


@settings(deadline=None)
@given(st.lists(any_record(), min_size=1, max_size=12))
def test_percentiles_rise_and_shares_are_shares(records: list[Record]) -> None:
    found = report(records).figures
    rising = (found.ttft_p50_s, found.ttft_p90_s, found.ttft_p95_s, found.ttft_p99_s)
    known = [value for value in rising if value is not None]
    assert known == sorted(known)
    for share in (found.good, found.hit_rate):
        assert share is None or 0 <= share <= 1
    for balance in (found.balance_tokens, found.balance_requests):
        assert balance is None or balance >= 1 - 1e-9


def test_replicas_own_counters_make_the_balance_where_there_are_any() -> None:
    """Also of answers that name none of them, or all the same one."""
    computed = {"r10": Computed(1, 100, 100), "r2": Computed(3, 400, 100), "r1": Computed(2, 200, 100)}
    report = run_report(target(replicas=2), plan(), [record(replica="front")], Setting(computed=computed))
    assert report.figures.balance_tokens == pytest.approx(300 / (400 / 3))
    assert report.figures.balance_requests == pytest.approx(3 / 2)
    assert list(report.computed) == ["r1", "r2", "r10"]
