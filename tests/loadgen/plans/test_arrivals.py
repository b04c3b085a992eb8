"""Arrivals: specs, and the times that they stand for."""

from __future__ import annotations

from itertools import pairwise
from statistics import mean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.plans.arrivals import FORMS, Arrivals, read_arrivals, start_times

rates = st.floats(0.1, 50)
OPEN = st.one_of(
    rates.map(lambda rate: Arrivals("poisson", rate)),
    rates.map(lambda rate: Arrivals("constant", rate)),
    st.builds(lambda rate, cv: Arrivals("gamma", rate, cv=cv), rates, st.floats(0.2, 4)),
    st.builds(lambda rate, to: Arrivals("ramp", rate, to), st.floats(0, 50), rates),
)


@pytest.mark.parametrize(
    ("spec", "read"),
    [
        ("poisson:2", Arrivals("poisson", 2.0)),
        ("gamma:2.5:3", Arrivals("gamma", 2.5, cv=3.0)),
        ("constant:.5", Arrivals("constant", 0.5)),
        ("ramp:0-10", Arrivals("ramp", 0.0, 10.0)),
        ("closed:4", Arrivals("closed", concurrency=4)),
        ("trace", Arrivals("trace")),
    ],
)
def test_a_spec_is_read(spec: str, read: Arrivals) -> None:
    assert read_arrivals(spec) == read


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("", ""),
        ("poisson", ""),
        ("poisson:two", ""),
        ("poisson:0", "0 is not above 0"),
        ("poisson:-1", "-1 is not above 0"),
        ("poisson:inf", "inf is not finite"),
        ("constant:nan", "nan is not finite"),
        ("gamma:2", ""),
        ("gamma:2:0", "0 is not above 0"),
        ("gamma:2:1e-200", "CV is between 0.001 and 100"),
        ("gamma:2:1e6", "CV is between 0.001 and 100"),
        ("ramp:5", ""),
        ("ramp:0-0", "not both 0"),
        ("closed:0", "at least 1 session at a time"),
        ("closed:1.5", ""),
        ("trace:1", ""),
        ("uniform:3", ""),
    ],
)
def test_a_bad_spec_is_refused_with_the_forms_there_are(spec: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^arrivals: '{spec}' is none of ") as caught:
        read_arrivals(spec)
    assert FORMS in str(caught.value)
    assert str(caught.value).endswith(f"{reason})" if reason else "times)")


@settings(deadline=None)
@given(OPEN, st.floats(0.5, 20), st.integers(0, 100))
def test_starts_rise_within_the_run_and_depend_on_the_seed_alone(
    arrivals: Arrivals, duration_s: float, seed: int
) -> None:
    starts = start_times(arrivals, duration_s, seed)
    assert all(before <= after for before, after in pairwise(starts))
    assert all(0 <= start < duration_s for start in starts)
    assert starts == start_times(arrivals, duration_s, seed)


@settings(deadline=None)
@given(rates, st.floats(1, 20), st.integers(0, 100))
def test_a_longer_run_begins_like_the_shorter_one(rate: float, duration_s: float, seed: int) -> None:
    arrivals = Arrivals("poisson", rate)
    short, long = (start_times(arrivals, length, seed) for length in (duration_s, 2 * duration_s))
    assert long[: len(short)] == short


@settings(deadline=None)
@given(st.floats(0.5, 10), st.integers(0, 100))
def test_another_rate_stretches_the_same_gaps(rate: float, seed: int) -> None:
    slow = start_times(Arrivals("poisson", rate), 20.0, seed)
    fast = start_times(Arrivals("poisson", 2 * rate), 10.0, seed)
    assert fast == pytest.approx([start / 2 for start in slow])


def test_rates_and_variation_are_those_of_the_spec() -> None:
    for spec, cv in (("poisson:20", 1.0), ("gamma:20:3", 3.0), ("gamma:20:0.3", 0.3), ("constant:20", 0.0)):
        starts = start_times(read_arrivals(spec), 1000.0, 1)
        gaps = [after - before for before, after in pairwise(starts)]
        assert len(starts) == pytest.approx(20_000, rel=0.1)
        assert stdev(gaps) / mean(gaps) == pytest.approx(cv, rel=0.1, abs=1e-6)


@pytest.mark.parametrize(("spec", "early"), [("ramp:0-20", 0.25), ("ramp:20-0", 0.75), ("ramp:10-10", 0.5)])
def test_a_ramp_goes_evenly_from_one_rate_to_the_other(spec: str, early: float) -> None:
    starts = start_times(read_arrivals(spec), 1000.0, 1)
    assert len(starts) == pytest.approx(10_000, rel=0.05)
    assert sum(start < 500 for start in starts) / len(starts) == pytest.approx(early, abs=0.02)


def test_what_has_no_times_or_too_many_is_refused() -> None:
    for kind in ("closed:3", "trace"):
        with pytest.raises(ValueError, match="has no start times of its own"):
            start_times(read_arrivals(kind), 1.0, 1)
    with pytest.raises(ValueError, match="lower the rate or the duration"):
        start_times(read_arrivals("constant:1e6"), 100.0, 1)
