"""Weighted figures against the plain ones of the values written out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.compare.columns import Column
from loadgen.reports.statistics import mean, percentile

SESSIONS = 4
values = st.lists(st.tuples(st.integers(0, SESSIONS - 1), st.floats(-1e6, 1e6)), max_size=20)
weights = st.lists(st.integers(0, 3), min_size=SESSIONS, max_size=SESSIONS)


@settings(deadline=None)
@given(values, weights, st.sampled_from([0.0, 2.5, 50.0, 95.0, 99.0, 100.0]))
def test_a_weight_counts_a_sessions_values_so_many_times(
    found: list[tuple[int, float]], counts: list[int], percent: float
) -> None:
    column = Column(found)
    written_out = [value for place, value in found for _ in range(counts[place])]
    assert column.count(counts) == len(written_out)
    assert column.sum(counts) == pytest.approx(sum(written_out), abs=1e-6)
    assert column.percentile(percent, counts) == pytest.approx(percentile(written_out, percent))
    assert column.mean(counts) == pytest.approx(mean(written_out), abs=1e-6)
