"""Norms, rotary embedding and gated SiLU compute what the plain torch reference does, whatever the shape."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import fused, reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def close(ours: Tensor, expected: Tensor) -> None:
    assert ours.dtype == expected.dtype
    torch.testing.assert_close(ours, expected, rtol=1e-5 if ours.dtype == torch.float32 else 2e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), [(1, 64), (3, 200), (2, 4096), (1, 16384)])
def test_rms_norm_of_rows(tokens: int, width: int, dtype: torch.dtype) -> None:
    x, weight = 30 * normal(tokens, width, dtype=dtype), normal(width, dtype=dtype)
    close(fused.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 1, 128), (5, 3, 80), (2, 7, 256)])
def test_rms_norm_of_heads_within_a_fused_product(tokens: int, heads: int, width: int, dtype: torch.dtype) -> None:
    qkv = normal(tokens, (heads + 2) * width, dtype=dtype)
    query, weight = qkv[:, : heads * width].view(tokens, heads, width), normal(width, dtype=dtype)
    normed = fused.rms_norm(query, weight, 1e-6)
    close(normed, reference.rms_norm(query, weight, 1e-6))
    close(normed[-1, -1], reference.rms_norm(query[-1, -1], weight, 1e-6))


def test_a_row_of_zeros_stays_zero() -> None:
    assert not fused.rms_norm(torch.zeros(2, 96, device=DEVICE), normal(96), 1e-6).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), [(1, 64), (3, 200), (2, 5000)])
def test_add_rms_norm_keeps_the_sum_it_normalised(tokens: int, width: int, dtype: torch.dtype) -> None:
    x, weight = normal(tokens, width + 3, dtype=dtype)[:, :width], normal(width, dtype=dtype)
    residual = normal(tokens, width, dtype=dtype) * 5
    ours, expected = residual.clone(), residual.clone()
    close(fused.add_rms_norm(x, ours, weight, 1e-5), reference.add_rms_norm(x, expected, weight, 1e-5))
    assert torch.equal(ours, expected)
    assert torch.equal(ours, residual + x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("query_heads", "key_heads", "width", "rotated"),
    [(4, 4, 64, 64), (6, 2, 80, 80), (5, 1, 96, 24), (20, 3, 128, 128), (2, 1, 256, 256)],
)
def test_rope_turns_queries_and_keys_in_place(
    query_heads: int, key_heads: int, width: int, rotated: int, dtype: torch.dtype
) -> None:
    positions = torch.tensor([30, 0, 7], device=DEVICE)
    angles = normal(31, rotated // 2)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    ours = normal(3, (query_heads + 2 * key_heads) * width, dtype=dtype)
    expected, before = ours.clone(), ours.clone()
    for ops, qkv in ((fused, ours), (reference, expected)):
        heads = qkv.view(3, -1, width)
        ops.rope(heads[:, :query_heads], heads[:, query_heads:-key_heads], positions, cos_sin)
    close(ours, expected)
    ours, before = ours.view(3, -1, width), before.view(3, -1, width)
    assert torch.equal(ours[..., rotated:], before[..., rotated:])
    assert torch.equal(ours[:, -key_heads:], before[:, -key_heads:])


def test_rope_pairs_halves_as_hugging_face_does() -> None:
    query, key = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]], device=DEVICE), torch.zeros(1, 1, 4, device=DEVICE)
    quarter = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=DEVICE)  # a quarter turn: cosines 0, sines 1
    fused.rope(query, key, torch.zeros(1, dtype=torch.int64, device=DEVICE), quarter)
    assert query.flatten().tolist() == [-3.0, -4.0, 1.0, 2.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), [(1, 16), (3, 100), (2, 1500)])
def test_silu_mul(tokens: int, width: int, dtype: torch.dtype) -> None:
    gate_up = 4 * normal(tokens, 2 * width, dtype=dtype)
    close(fused.silu_mul(gate_up), reference.silu_mul(gate_up))
