"""The t distribution against printed tables."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.compare.student import central_share, t_quantile


@pytest.mark.parametrize(
    ("degrees", "t"),
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (6, 2.447),
        (9, 2.262),
        (10, 2.228),
        (29, 2.045),
        (30, 2.042),
        (120, 1.980),
    ],
)
def test_the_quantiles_of_the_table_at_975_in_a_thousand(degrees: int, t: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(t, abs=5e-4)


def test_other_columns_of_the_table() -> None:
    assert t_quantile(0.95, 7) == pytest.approx(1.895, abs=5e-4)
    assert t_quantile(0.995, 8) == pytest.approx(3.355, abs=5e-4)
    assert t_quantile(0.5, 3) == pytest.approx(0.0, abs=1e-9)
    assert t_quantile(0.025, 4) == -t_quantile(0.975, 4)


@settings(deadline=None)
@given(st.integers(1, 40), st.floats(0.51, 0.999))
def test_a_quantile_is_where_the_distribution_says(degrees: int, probability: float) -> None:
    assert central_share(t_quantile(probability, degrees), degrees) == pytest.approx(2 * probability - 1, abs=1e-9)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 3), (1.0, 3), (0.9, 0)])
def test_what_has_no_quantile_is_refused(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match=r"probability|degree"):
        t_quantile(probability, degrees)
