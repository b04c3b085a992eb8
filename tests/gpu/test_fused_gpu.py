"""What the interpreter cannot show of the kernels beside attention: bf16, FP8, real sizes, CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.ops import KvCache
from kernels.philox import gumbel, token_bits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

HALVES = [torch.bfloat16, torch.float16]


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.float32).to(dtype)


def close(ours: Tensor, expected: Tensor) -> None:
    assert ours.dtype == expected.dtype
    rtol = {torch.bfloat16: 1.6e-2, torch.float16: 2e-3, torch.float32: 1e-5}[ours.dtype]
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=rtol / 10)


def distance(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("width", [96, 2880, 4096, 16384])
def test_norms(width: int, dtype: torch.dtype) -> None:
    from kernels import triton_ops as ops

    x, weight, residual = 5 * normal(1000, width, dtype=dtype), normal(width, dtype=dtype), normal(1000, width)
    close(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    ours, expected = residual.to(dtype), residual.to(dtype, copy=True)
    close(ops.add_rms_norm(x, ours, weight, 1e-5), reference.add_rms_norm(x, expected, weight, 1e-5))
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("width", [64, 80, 96, 128, 192, 256])
def test_norms_of_heads_and_rope_on_a_fused_product(width: int, dtype: torch.dtype) -> None:
    from kernels import triton_ops as ops

    qkv = normal(777, 12 + 4 + 4, width, dtype=dtype)
    query, key = qkv[:, :12], qkv[:, 12:16]
    weight = normal(width, dtype=dtype)
    close(ops.rms_norm(query, weight, 1e-6), reference.rms_norm(query, weight, 1e-6))
    angles = normal(5000, width // 2, dtype=torch.float32)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    positions = torch.randint(0, 5000, (777,), device="cuda")
    expected = query.clone(), key.clone()
    reference.rope(*expected, positions, cos_sin)
    ops.rope(query, key, positions, cos_sin)
    close(query, expected[0])
    close(key, expected[1])


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("width", [768, 2730, 14336])
def test_silu_mul(width: int, dtype: torch.dtype) -> None:
    from kernels import triton_ops as ops

    gate_up = 10 * normal(513, 2 * width, dtype=dtype)
    close(ops.silu_mul(gate_up), reference.silu_mul(gate_up))


@pytest.mark.parametrize("cached", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("width", [64, 80, 128, 256])
def test_the_cache_holds_what_the_reference_stores_bit_for_bit(width: int, cached: torch.dtype) -> None:
    from kernels import triton_ops as ops

    scales = (0.037, 2.0) if cached == torch.float8_e4m3fn else (1.0, 1.0)
    zeros = torch.zeros(64, 8, 16, width, device="cuda")
    ours, expected = (KvCache(zeros.to(cached, copy=True), zeros.to(cached, copy=True), *scales) for _ in range(2))
    new = 30 * normal(900, 2, 8, width)
    key, value = new[:, 0], new[:, 1]
    key[5, 3, 7] = torch.nan
    slots = torch.randperm(64 * 16, device="cuda")[:900]
    slots[::7] = -1
    ops.store_kv(key, value, ours, slots)
    reference.store_kv(key, value, expected, slots)
    for one, other in ((ours.key, expected.key), (ours.value, expected.value)):
        torch.testing.assert_close(one.float(), other.float(), rtol=0, atol=0, equal_nan=True)


def test_a_cache_may_have_more_than_two_to_the_31_elements() -> None:
    from kernels import triton_ops as ops

    blocks = 2**31 // (8 * 16 * 128) + 100
    both = torch.zeros(blocks, 8, 16, 128, dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
    new = torch.ones(1, 8, 128, device="cuda", dtype=torch.bfloat16)
    ops.store_kv(new, new, KvCache(both, both), torch.tensor([blocks * 16 - 1], device="cuda"))
    assert bool((both[-1, :, -1].float() == 1).all())
    assert int((both.view(torch.uint8)[-200:] != 0).sum()) == 8 * 128


@pytest.fixture(scope="module")
def qwen3_layer() -> tuple[Tensor, Tensor]:
    """gate_up and down of a layer in the shape of Qwen3-30B-A3B."""
    return normal(128, 2 * 768, 2048) / 2048**0.5, normal(128, 2048, 768) / 768**0.5


@pytest.mark.parametrize("tokens", [1, 2, 33, 128, 600, 1200, 4097])
def test_experts_at_real_sizes(tokens: int, qwen3_layer: tuple[Tensor, Tensor]) -> None:
    from kernels import triton_ops as ops

    x = normal(tokens, 2048)
    weights, chosen = normal(tokens, 128, dtype=torch.float32).softmax(-1).topk(8)
    ours = ops.experts(x, *qwen3_layer, chosen, weights)
    assert ours.dtype == torch.bfloat16
    assert distance(ours, reference.experts(x, *qwen3_layer, chosen, weights)) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("tokens", "count", "k"), [(1, 8, 2), (50, 8, 2), (300, 8, 2), (900, 3, 1)])
def test_experts_of_odd_shapes(tokens: int, count: int, k: int, dtype: torch.dtype) -> None:
    from kernels import triton_ops as ops

    x = normal(tokens, 200, dtype=dtype)
    gate_up, down = normal(count, 2 * 152, 200, dtype=dtype) / 14, normal(count, 200, 152, dtype=dtype) / 12
    weights, chosen = normal(tokens, count, dtype=torch.float32).softmax(-1).topk(k)
    ours = ops.experts(x, gate_up, down, chosen, weights)
    limit = 1e-5 if dtype == torch.float32 else 2e-3
    assert distance(ours, reference.experts(x, gate_up, down, chosen, weights)) < limit


def test_experts_may_have_more_than_two_to_the_31_weights() -> None:
    from kernels import triton_ops as ops

    gate_up = torch.zeros(68, 2 * 4096, 4096, dtype=torch.bfloat16, device="cuda")
    assert gate_up.numel() > 2**31
    gate_up[-1], x = normal(2 * 4096, 4096) / 64, normal(3, 4096)
    last = torch.full((3, 1), 67, device="cuda")
    down = torch.eye(4096, dtype=torch.bfloat16, device="cuda")[None].expand(68, -1, -1)
    ours = ops.experts(x, gate_up, down, last, torch.ones(3, 1, device="cuda"))
    assert distance(ours, reference.silu_mul(x @ gate_up[-1].T)) < 1e-2


@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 128_256), (7, 151_936), (300, 32_001), (2, 262_144)])
def test_draws_at_real_sizes(rows: int, vocabulary: int) -> None:
    from kernels import triton_ops as ops

    logits = 3 * normal(rows, vocabulary, dtype=torch.float32)
    seeds, positions = torch.arange(rows, device="cuda") * 12345 - 7, torch.arange(rows, device="cuda")
    drawn = ops.sample(logits, seeds, positions)
    noisy = logits + gumbel(token_bits(seeds, positions, vocabulary))
    # The logarithms of torch and Triton may differ in the last digits, so only a near tie may go the other way.
    assert bool((noisy.gather(1, drawn[:, None])[:, 0] > noisy.max(1).values - 1e-4).all())
    assert drawn[-1] == ops.sample(logits[-1:], seeds[-1:], positions[-1:])[0]


def test_frequencies_follow_the_softmax() -> None:
    from kernels import triton_ops as ops

    draws = 200_000
    logits = torch.linspace(-3, 3, 50, device="cuda").expand(draws, 50)
    drawn = ops.sample(logits, torch.full((draws,), 42, device="cuda"), torch.arange(draws, device="cuda"))
    expected = logits[0].double().softmax(-1) * draws
    chi_square = ((torch.bincount(drawn, minlength=50) - expected).square() / expected).sum().item()
    assert chi_square < 74.9  # 49 degrees of freedom: one in a hundred, for one fixed seed


def test_a_graph_replays_with_other_tokens_routes_and_seeds(qwen3_layer: tuple[Tensor, Tensor]) -> None:
    from kernels import triton_ops as ops

    x, weight = normal(16, 2048), normal(2048)
    chosen, weights = torch.zeros(16, 8, dtype=torch.int64, device="cuda"), torch.zeros(16, 8, device="cuda")
    seeds, positions = torch.zeros(16, dtype=torch.int64, device="cuda"), torch.arange(16, device="cuda")
    chosen += torch.arange(8, device="cuda")

    def step() -> tuple[Tensor, Tensor]:
        out = ops.experts(ops.rms_norm(x, weight, 1e-6), *qwen3_layer, chosen, weights)
        return out, ops.sample(out.float(), seeds, positions)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, drawn = step()
    for seed in (1, 2):
        x.copy_(normal(16, 2048, seed=seed))
        best = normal(16, 128, dtype=torch.float32, seed=seed).softmax(-1).topk(8)
        weights.copy_(best.values)
        chosen.copy_(best.indices)
        seeds.fill_(seed)
        graph.replay()
        once = step()
        assert torch.equal(out, once[0])
        assert torch.equal(drawn, once[1])
