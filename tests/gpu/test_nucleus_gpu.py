"""The threshold of top_p at real sizes, from many programs at once: what the interpreter cannot show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

# What sums and exponentials in fp32 may shift a mass by.
ROUNDING = 2e-6


def logits(rows: int, vocabulary: int) -> Tensor:
    """From flat to steep, half of them with the ties of bf16."""
    generator = torch.Generator("cuda").manual_seed(vocabulary)
    steepness = torch.logspace(-2, 1, rows, device="cuda")[:, None]
    values = steepness * torch.randn(rows, vocabulary, generator=generator, device="cuda")
    values[::2] = values[::2].bfloat16().float()
    return values


@pytest.mark.parametrize(
    ("rows", "vocabulary"), [(1, 128_256), (7, 151_936), (128, 32_001), (64, 128_256), (2, 262_144)]
)
def test_thresholds_at_real_sizes(rows: int, vocabulary: int) -> None:
    from kernels import triton_ops as ops

    values, mass = logits(rows, vocabulary), torch.linspace(0.5, 0.99, rows, device="cuda")
    least = ops.nucleus(values, mass)
    assert bool((least <= reference.nucleus(values, mass - ROUNDING)).all())
    assert bool((least >= reference.nucleus(values, mass + ROUNDING)).all())
    for row in (0, rows // 2, rows - 1):
        assert torch.equal(ops.nucleus(values[row : row + 1], mass[row : row + 1])[0], least[row])
    # In whatever order programs come to bring their candidates.
    assert all(torch.equal(ops.nucleus(values, mass), least) for _ in range(20))


def test_rows_of_one_height_and_rows_that_want_everything() -> None:
    from kernels import triton_ops as ops

    values = torch.zeros(3, 128_256, device="cuda")
    values[1, 7], values[2, ::3] = 50.0, -torch.inf
    assert ops.nucleus(values, torch.full((3,), 0.9, device="cuda")).tolist() == [0.0, 50.0, 0.0]
    assert ops.nucleus(values, torch.ones(3, device="cuda")).tolist() == [-torch.inf] * 3
