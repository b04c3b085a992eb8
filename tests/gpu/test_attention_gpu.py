"""What the interpreter cannot show of attention: bf16, FP8, every configuration, real lengths, CUDA graphs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels import reference_attention
from kernels.ops import Attending
from kernels.paged_decode import paged_decode
from kernels.paged_prefill import paged_prefill
from tests.kernels.paged_kv import Case, assert_close, case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
ATTENDING = [
    Attending(0.09),
    Attending(0.09, window=100),
    Attending(0.09, window=1024),
    Attending(0.09, softcap=20.0),
    Attending(0.09, window=700, softcap=50.0),
]
RAGGED = [1, 0, 17, 64, 4000, 129, 1000, 2048]
CONTEXTS, QUERIES = [70, 3000, 33, 0, 1024, 2049], [70, 40, 1, 2, 1024, 500]


def poisoned(of: Case) -> None:
    """Leaves NaN in the memory that the next result will be given, so that what is not written shows."""
    for _ in range(4):
        torch.full_like(of.query, torch.nan)


def check_decode(of: Case, attending: Attending) -> None:
    poisoned(of)
    decoded = paged_decode(of.query, of.cache, of.paged, attending)
    wanted = reference_attention.paged_decode(of.query, of.cache, of.paged, attending)
    assert_close(decoded, wanted)
    assert torch.equal(paged_decode(of.query, of.cache, of.paged, attending), decoded)


def check_prefill(of: Case, attending: Attending) -> None:
    poisoned(of)
    attended = paged_prefill(of.query, of.cache, of.paged, attending)
    wanted = reference_attention.paged_prefill(of.query, of.cache, of.paged, attending)
    assert_close(attended, wanted)
    assert torch.equal(paged_prefill(of.query, of.cache, of.paged, attending), attended)


@pytest.mark.parametrize("attending", ATTENDING, ids=str)
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_head_dimensions(dtype: torch.dtype, dim: int, attending: Attending) -> None:
    check_decode(case(RAGGED, kv_heads=2, group=4, dim=dim, dtype=dtype), attending)
    check_prefill(case(CONTEXTS, QUERIES, kv_heads=2, group=4, dim=dim, dtype=dtype), attending)


@pytest.mark.parametrize("attending", ATTENDING, ids=str)
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_fp8_caches(dtype: torch.dtype, dim: int, attending: Attending) -> None:
    fp8 = partial(case, kv_heads=2, group=4, dim=dim, dtype=dtype, cached=FP8, scales=(0.02, 0.5))
    check_decode(fp8(RAGGED), attending)
    check_prefill(fp8(CONTEXTS, QUERIES), attending)


@pytest.mark.parametrize("group", [1, 5, 8, 16, 24, 32, 71])
@pytest.mark.parametrize("kv_heads", [1, 3, 8])
def test_heads(kv_heads: int, group: int) -> None:
    check_decode(case(RAGGED, kv_heads=kv_heads, group=group, dim=128, dtype=BF16), Attending(0.09))
    check_prefill(case(CONTEXTS, QUERIES, kv_heads=kv_heads, group=group, dim=128, dtype=BF16), Attending(0.09))


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_block_sizes(dim: int, block_size: int) -> None:
    paged = partial(case, kv_heads=2, group=4, dim=dim, block_size=block_size, dtype=BF16)
    check_decode(paged(RAGGED), Attending(0.09, window=600))
    check_prefill(paged(CONTEXTS, QUERIES), Attending(0.09, window=600))


@pytest.mark.parametrize(
    "contexts", [[32768], [1024], [131072], [8192] * 64, [2000] * 128, [300] * 256, [30000, *[50] * 200]]
)
def test_real_lengths_decode(contexts: list[int]) -> None:
    check_decode(case(contexts, kv_heads=8, group=4, dim=128, dtype=BF16), Attending(0.09))


@pytest.mark.parametrize(("prefix", "tokens"), [(0, 8192), (24000, 8192), (5, 2000)])
@pytest.mark.parametrize("dim", [64, 128])
def test_real_lengths_prefill(dim: int, prefix: int, tokens: int) -> None:
    check_prefill(case([prefix + tokens], [tokens], kv_heads=8, group=4, dim=dim, dtype=BF16), Attending(0.09))


def test_strided_rows_of_a_fused_product() -> None:
    tight = case(RAGGED, kv_heads=2, group=4, dim=128, dtype=BF16)
    fused = torch.full((len(RAGGED), 12, 128), torch.nan, dtype=BF16, device="cuda")
    fused[:, :8] = tight.query
    check_decode(replace(tight, query=fused[:, :8]), Attending(0.09))


def test_a_captured_decode_stays_valid_at_any_lengths() -> None:
    """One graph, captured while all rows are padding, then replayed as the sequences grow and come and go."""
    longest = case([6000, 3000, 4097, 1], kv_heads=2, group=4, dim=128, dtype=BF16)
    lengths = longest.paged.context_lens.clone()
    static = replace(longest.paged, context_lens=torch.zeros_like(lengths), longest_context=8192)
    paged_decode(longest.query, longest.cache, static, Attending(0.09))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decoded = paged_decode(longest.query, longest.cache, static, Attending(0.09))
    for share in (0.0, 0.001, 0.3, 1.0):
        static.context_lens.copy_((lengths * share).int())
        decoded.fill_(torch.nan)
        graph.replay()
        wanted = reference_attention.paged_decode(longest.query, longest.cache, static, Attending(0.09))
        assert_close(decoded, wanted)


def test_large_scores_saturate_instead_of_overflowing() -> None:
    def scaled(by: float) -> Tensor:
        some = case([500, 900], kv_heads=2, group=4, dim=128, dtype=BF16)
        return paged_decode(some.query * by, some.cache, some.paged, Attending(0.09, softcap=5.0))

    assert scaled(1000.0).isfinite().all()
    assert scaled(-1000.0).isfinite().all()
