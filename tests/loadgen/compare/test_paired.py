"""Paired comparison against cases worked out by hand, and what holds for any two sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.compare.paired import against, pairs_of
from loadgen.compare.schema import Against, Estimate, LeftOut, PairedMetric, RunMetric
from loadgen.records import Record
from loadgen.reports.figures import Setting, figures
from loadgen.reports.schema import Slo

SLO = Slo(2.0, 0.05)


def answered(session: int, ttft_s: float, *, turn: int = 0, cached: int = 0, due: float = 0.0) -> Record:
    """Of 100 prompt tokens, with three output tokens 10 ms apart."""
    first = due + ttft_s
    return Record(
        session=session,
        turn=turn,
        due=due,
        sent=due,
        end=first + 0.02,
        token_times=(first, first + 0.01, first + 0.02),
        status=200,
        prompt_tokens=100,
        cached_tokens=cached,
        completion_tokens=3,
    )


def failed(session: int, turn: int = 0) -> Record:
    return Record(session=session, turn=turn, due=0.0, sent=0.0, end=1.0, error="no")


def compared(baseline: Sequence[Sequence[Record]], side: Sequence[Sequence[Record]], seed: int = 1) -> Against:
    return against("side", "baseline", side, baseline, SLO, seed)


def of_requests(found: Against, name: str) -> PairedMetric:
    (metric,) = [metric for metric in found.requests if metric.metric == name]
    return metric


def of_runs(found: Against, name: str) -> RunMetric:
    (metric,) = [metric for metric in found.runs if metric.metric == name]
    return metric


def contains(estimate: Estimate, value: float, within: float = 1e-9) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low - within <= value <= estimate.high + within


def test_three_repetitions_give_students_interval_of_their_means() -> None:
    # Differences of the repetitions' means: 1, 2 and 3 s. Mean 2, standard deviation 1, t(2) = 4.303.
    baseline = [[answered(0, 1.0), answered(1, 2.0)] for _ in range(3)]
    side = [[answered(0, 1.0 + shift - 0.5), answered(1, 2.0 + shift + 0.5)] for shift in (1.0, 2.0, 3.0)]
    found = of_requests(compared(baseline, side), "ttft_s").mean_difference
    assert (found.method, found.samples) == ("t", 3)
    assert found.value == pytest.approx(2.0)
    assert found.low == pytest.approx(2.0 - 4.303 / math.sqrt(3), abs=1e-3)
    assert found.high == pytest.approx(2.0 + 4.303 / math.sqrt(3), abs=1e-3)
    assert not found.certain


def test_medians_and_their_ratio_by_hand() -> None:
    baseline = [[answered(session, ttft) for session, ttft in enumerate((1.0, 2.0, 4.0))]]
    side = [[answered(session, ttft) for session, ttft in enumerate((0.5, 1.0, 5.0))]]
    found = of_requests(compared(baseline, side), "ttft_s")
    assert found.pairs == 3
    assert found.median_difference.value == pytest.approx(-0.5)  # of -0.5, -1 and +1
    assert found.mean_difference.value == pytest.approx(-0.5 / 3)
    assert found.median_ratio.value == pytest.approx(0.5)
    assert found.better_share == pytest.approx(2 / 3)
    assert found.mean_difference.method == "bootstrap"
    assert found.mean_difference.samples == 3


def test_the_ratio_over_repetitions_is_a_geometric_mean() -> None:
    baseline = [[answered(0, 1.0)] for _ in range(3)]
    side = [[answered(0, ttft)] for ttft in (0.5, 1.0, 2.0)]
    found = of_requests(compared(baseline, side), "ttft_s").median_ratio
    assert found.value == pytest.approx(1.0)
    assert found.low is not None
    assert found.high is not None
    assert found.low * found.high == pytest.approx(1.0)


def test_requests_that_make_no_pair_are_counted_by_why() -> None:
    baseline = [answered(0, 1), failed(1), answered(2, 1), failed(3), answered(4, 1), answered(4, 1, turn=1)]
    side = [answered(0, 2), answered(1, 1), failed(2), failed(3), answered(4, 3), answered(5, 1), failed(6)]
    pairs, _ = pairs_of(baseline, side)
    assert [(one.session, other.session) for one, other in pairs] == [(0, 0), (4, 4)]
    found = compared([baseline, baseline], [side, side])
    assert found.pairs == 4
    assert found.left_out == LeftOut(2, 2, 2, 2, 4)
    assert of_requests(found, "ttft_s").mean_difference.value == pytest.approx(1.5)
    assert of_runs(found, "good").baseline == pytest.approx(4 / 6)


def test_a_request_of_one_token_counts_everywhere_but_in_the_time_per_token() -> None:
    short = [
        Record(0, 0, 0.0, 0.0, 1.0, (1.0,), 200, prompt_tokens=9, completion_tokens=1),
        answered(1, 1.0),
    ]
    found = compared([short], [short])
    assert of_requests(found, "ttft_s").pairs == 2
    assert of_requests(found, "tpot_s").pairs == 1


def test_where_one_side_says_nothing_of_cached_tokens_nothing_is_said_of_their_difference() -> None:
    said = [answered(session, 1.0, cached=50) for session in range(3)]
    silent = [msgspec.structs.replace(record, cached_tokens=0, reports_cached=False) for record in said]
    found = compared([silent], [said])
    hit_rate, share = of_runs(found, "hit_rate"), of_requests(found, "cached_share")
    assert (hit_rate.baseline, hit_rate.side, hit_rate.difference.value) == (None, 0.5, None)
    assert (share.pairs, share.mean_difference.value) == (0, None)
    assert of_requests(found, "ttft_s").pairs == 3


def test_one_session_gives_no_interval_and_no_request_no_value() -> None:
    alone = compared([[answered(0, 1.0)]], [[answered(0, 2.0)]])
    assert of_requests(alone, "ttft_s").mean_difference == Estimate(1.0, samples=1)
    nothing = compared([[], [], []], [[], [], []])
    assert nothing.pairs == 0
    assert all(metric.mean_difference == Estimate(None) for metric in nothing.requests)
    # Failed requests are not good: that is known even of a run where all failed.
    lost = compared([[failed(0), failed(1)]], [[answered(0, 1.0), answered(1, 1.0)]])
    assert of_runs(lost, "good").difference.value == 1.0
    assert of_runs(lost, "ttft_p50_s").difference.value is None


def test_figures_of_runs_are_those_of_a_single_runs_report() -> None:
    runs = [[answered(n, 0.5 + n * 0.4, cached=n * 10, due=n * 0.1) for n in range(7)], [failed(0), answered(1, 1.0)]]
    reports = [figures(run, Setting(SLO), 0, None) for run in runs]
    for metric in compared(runs, runs).runs:
        wanted = fmean(getattr(report, metric.metric) for report in reports)
        assert metric.baseline == pytest.approx(wanted), metric.metric
        assert metric.side == pytest.approx(wanted)
        assert metric.difference.value == 0.0


def test_equal_seeds_give_equal_intervals() -> None:
    baseline = [[answered(n, 1.0 + n % 5) for n in range(20)]]
    side = [[answered(n, 1.0 + n % 3) for n in range(20)]]
    assert compared(baseline, side) == compared(baseline, side)
    assert compared(baseline, side) != compared(baseline, side, seed=2)


ttfts = st.floats(0.001, 50.0)
one_run = st.lists(ttfts, min_size=2, max_size=8)


@settings(max_examples=12, deadline=None)
@given(st.lists(one_run, min_size=1, max_size=4))
def test_identical_sides_differ_by_nothing(values: list[list[float]]) -> None:
    runs = [[answered(n, ttft, cached=n) for n, ttft in enumerate(run)] for run in values]
    found = compared(runs, runs)
    assert not found.left_out.total
    for metric in found.requests:
        assert metric.mean_difference.value == metric.median_difference.value == 0.0
        assert contains(metric.mean_difference, 0.0)
        assert contains(metric.median_difference, 0.0)
        assert metric.better_share == 0.5
    for run_metric in found.runs:
        assert run_metric.difference.value == 0.0
        assert contains(run_metric.difference, 0.0)


@settings(max_examples=12, deadline=None)
@given(st.lists(one_run, min_size=1, max_size=4), st.floats(0.01, 5.0))
def test_a_constant_shift_is_found_exactly(values: list[list[float]], shift: float) -> None:
    baseline = [[answered(n, ttft) for n, ttft in enumerate(run)] for run in values]
    side = [[answered(n, ttft + shift) for n, ttft in enumerate(run)] for run in values]
    found = of_requests(compared(baseline, side), "ttft_s")
    for estimate in (found.mean_difference, found.median_difference):
        assert estimate.value == pytest.approx(shift)
        assert estimate.low == pytest.approx(shift)
        assert estimate.high == pytest.approx(shift)
        assert estimate.certain
    assert found.better_share == 0.0
