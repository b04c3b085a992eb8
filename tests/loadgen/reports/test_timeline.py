"""A run by windows: nothing counted twice, nothing left out, and never too many of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.records import Record
from loadgen.reports.timeline import MAX_WINDOWS, timeline
from tests.loadgen.reports.samples import any_record, failure, record


def _duration(records: list[Record]) -> float:
    return max(record.end for record in records)


def test_windows_of_a_tiny_run_are_as_worked_out_by_hand() -> None:
    records = [
        record(due=0.0, ttft=0.5, tokens=1, prompt=100, cached=50, replica="r0"),
        record(due=0.5, ttft=2.0, tokens=1, prompt=100, cached=0, replica="r1"),
        failure(due=1.5, end=3.0),
    ]
    found = timeline(records, ["r0", "r1", "r2"], 3.0, 1.0)

    assert [window.requests for window in found.windows] == [2, 1, 0]
    assert [window.errors for window in found.windows] == [0, 0, 1]
    assert [window.ttft_p50_s for window in found.windows] == [1.25, None, None]
    assert [window.hit_rate for window in found.windows] == [0.25, None, None]
    # Under way from 0 to 0.5, from 0.5 to 2.5 and from 1.5 to 3.
    assert [window.in_flight for window in found.windows] == pytest.approx([1.0, 1.5, 1.5])
    assert found.computed_tokens == {"r0": (50, 0, 0), "r1": (0, 0, 100), "r2": (0, 0, 0)}


@pytest.mark.parametrize(
    ("requests", "duration_s", "width_s"),
    [
        (1, 30.0, 5.0),
        (400, 30.0, 2.0),
        (100_000, 30.0, 0.5),
        (100_000, 60.0, 1.0),
        (100_000, 3600.0, 50.0),
        (1, 1e-6, 0.01),
    ],
)
def test_a_round_width_is_chosen_with_requests_enough_in_a_window(
    requests: int, duration_s: float, width_s: float
) -> None:
    assert timeline([record()] * requests, [], duration_s, None).window_s == pytest.approx(width_s)


def test_a_window_of_no_width_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than 0"):
        timeline([record()], [], 1.0, 0.0)


def test_too_many_windows_are_widened() -> None:
    found = timeline([record(due=999.0)], [], 1000.0, 0.001)
    assert len(found.windows) <= MAX_WINDOWS


def test_a_run_without_requests_has_no_windows() -> None:
    assert timeline([], [], 0.0, None).windows == ()


@settings(deadline=None)
@given(st.lists(any_record(), min_size=1, max_size=12), st.none() | st.floats(0.01, 1e3))
def test_windows_add_up_to_the_run(records: list[Record], window_s: float | None) -> None:
    found = timeline(records, ["r0", "r1"], _duration(records), window_s)
    good = [record for record in records if not record.error and record.replica]

    assert 1 <= len(found.windows) <= MAX_WINDOWS
    assert sum(window.requests for window in found.windows) == len(records)
    assert sum(window.errors for window in found.windows) == sum(bool(record.error) for record in records)
    computed = sum(record.prompt_tokens - record.cached_tokens for record in good)
    assert sum(map(sum, found.computed_tokens.values())) == computed
    under_way = sum(record.end - record.sent for record in records)
    mean = sum(window.in_flight for window in found.windows)
    assert mean * found.window_s == pytest.approx(under_way, rel=1e-6, abs=1e-6)
