"""The sizes of launches are those that Triton itself would compute."""

from __future__ import annotations

import triton
from hypothesis import given
from hypothesis import strategies as st

from kernels.launch_sizes import cdiv, next_power_of_2


@given(st.integers(0, 2**40), st.integers(1, 2**20))
def test_sizes_are_divided_as_triton_divides_them(size: int, part: int) -> None:
    assert cdiv(size, part) == triton.cdiv(size, part)


@given(st.integers(1, 2**40))
def test_widths_are_padded_as_triton_pads_them(size: int) -> None:
    assert next_power_of_2(size) == triton.next_power_of_2(size)
