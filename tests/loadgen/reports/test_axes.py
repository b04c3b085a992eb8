"""Axes: ticks lie on them, places and values are inverse, and times are written as people do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.reports import axes

TIMES = st.lists(st.floats(0, 1e5) | st.floats(0, 1e-3), max_size=5)


@settings(deadline=None)
@given(TIMES, st.sampled_from(["log", "time", "count", "ratio", "clock"]))
def test_an_axis_has_a_few_rising_ticks_within_it(values: list[float], kind: str) -> None:
    made = {
        "log": lambda: axes.log_time_axis("x", values),
        "time": lambda: axes.time_axis("x", values),
        "count": lambda: axes.count_axis("x", values),
        "ratio": lambda: axes.ratio_axis("x", values),
        "clock": lambda: axes.clock_axis(max(values, default=0.0)),
    }[kind]()
    places = [value for value, _ in made.ticks]
    assert 2 <= len(places) <= 16
    assert places == sorted(set(places))
    assert all(made.low * 0.999 <= value <= made.high * 1.001 for value in places)
    assert len({label for _, label in made.ticks}) == len(places)
    if kind in ("time", "count"):
        assert made.high >= max(values, default=0.0) * 0.999


@settings(deadline=None)
@given(TIMES, st.floats(0, 1))
def test_places_and_values_are_inverse(values: list[float], share: float) -> None:
    for axis in (axes.log_time_axis("x", values), axes.time_axis("x", values)):
        assert axis.place(axis.value(share), 0, 1) == pytest.approx(share, abs=1e-6)


@settings(deadline=None)
@given(st.floats(0, 1e6))
def test_what_lies_beyond_an_axis_is_drawn_at_its_end(value: float) -> None:
    for axis in (axes.log_time_axis("x", [0.1, 1.0]), axes.count_axis("x", [4.0])):
        assert 50 <= axis.place(value, 50, 400) <= 400


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (2e-5, "20 µs"),
        (0.0012, "1.2 ms"),
        (0.2274, "227 ms"),
        (0.9999, "1 s"),
        (2.066, "2.07 s"),
        (3600, "3,600 s"),
    ],
)
def test_a_time_is_written_with_the_unit_that_reads_best(value: float, text: str) -> None:
    assert axes.seconds(value) == text
