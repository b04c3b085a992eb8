"""The Triton kernel of paged prefill computes what the oracle computes; here in the interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference_attention
from kernels.ops import Attending, KvCache
from kernels.paged_decode import paged_decode
from kernels.paged_prefill import paged_prefill
from tests.kernels.paged_kv import DEVICE, FEW, SHAPES, Case, assert_close, case

FP32, FP16, FP8 = torch.float32, torch.float16, torch.float8_e4m3fn
# Whole prompts, chunks behind a prefix, one token, padding, all in one call.
CONTEXTS, QUERIES = [70, 300, 33, 0, 129], [70, 40, 1, 2, 2]


def check(of: Case, attending: Attending) -> None:
    attended = paged_prefill(of.query, of.cache, of.paged, attending)
    assert attended.dtype == of.query.dtype
    wanted = reference_attention.paged_prefill(of.query, of.cache, of.paged, attending)
    assert_close(attended, wanted, attending.softcap)


@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
@pytest.mark.parametrize(
    "attending",
    [
        Attending(0.1),
        Attending(0.1, window=1),
        Attending(0.1, window=50),
        Attending(0.1, window=500),
        Attending(0.1, softcap=2.0),
        Attending(0.1, window=130, softcap=50.0),
    ],
    ids=str,
)
def test_chunks_behind_prefixes(attending: Attending, dtype: torch.dtype) -> None:
    check(case(CONTEXTS, QUERIES, dtype=dtype), attending)


def test_padding_gives_zero() -> None:
    padded = case([0, 20, 0], [3, 4, 1])
    attended = paged_prefill(padded.query, padded.cache, padded.paged, Attending(0.1))
    assert not attended[:3].any()
    assert not attended[7:].any()
    assert attended[3:7].any()


@pytest.mark.parametrize(("kv_heads", "group"), [(2, 1), (2, 5), (1, 20), (1, 71)])
def test_any_number_of_query_heads_share_a_kv_head(kv_heads: int, group: int) -> None:
    check(case([3, 90], [2, 7], kv_heads=kv_heads, group=group), Attending(0.1))


@pytest.mark.parametrize(("block_size", "dim"), [(16, 80), (32, 128), (64, 64), (256, 64), (16, 256)])
@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
def test_block_sizes_and_head_dimensions(block_size: int, dim: int, dtype: torch.dtype) -> None:
    check(case([70, 200], [70, 20], group=3, block_size=block_size, dim=dim, dtype=dtype), Attending(0.1, window=90))


def test_an_fp8_cache_is_read_with_its_scales() -> None:
    check(case([70, 150], [70, 5], cached=FP8, scales=(0.5, 0.03)), Attending(0.1, softcap=4.0))


def test_rows_of_the_query_may_be_strided() -> None:
    tight = case([3, 90], [3, 20])
    fused = torch.full((23, 7, 64), torch.nan, device=DEVICE)
    fused[:, 1:3] = tight.query
    check(replace(tight, query=fused[:, 1:3]), Attending(0.1))


def test_one_token_is_decoded_the_same() -> None:
    some = case([1, 200, 64])
    decoded = paged_decode(some.query, some.cache, some.paged, Attending(0.1, window=100))
    prefilled = paged_prefill(some.query, some.cache, some.paged, Attending(0.1, window=100))
    assert_close(decoded, prefilled)


def test_more_sequences_than_one_look_at_the_starts_takes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.paged_prefill.MANY", 2)
    check(case([3, 70, 5, 40, 90], [2, 1, 5, 40, 3], group=1, dim=16), Attending(0.2))


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_the_tiles_of_smaller_gpus_compute_the_same(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.paged_prefill.is_roomy", lambda device: False)
    check(case([3, 70, 90], [2, 1, 40], group=3, dim=dim, dtype=FP16), Attending(0.1, window=50))


def test_a_cache_may_hold_more_than_2_to_the_31_elements() -> None:
    """Memory that nobody touches costs nothing: of these 4 GiB, the last blocks are written."""
    few = case([100, 3], [5, 3], block_size=256, dtype=FP16)
    blocks = 2**31 // few.cache.key[0].numel() + len(few.cache.key)
    store = torch.empty(blocks, *few.cache.key.shape[1:], dtype=FP16, device=DEVICE)
    store[-len(few.cache.key) :] = few.cache.key
    tables = few.paged.block_tables.clone()
    tables[:, 0] += blocks - len(few.cache.key)
    keys = KvCache(few.cache.key, few.cache.key)
    far = paged_prefill(few.query, KvCache(store, store), replace(few.paged, block_tables=tables), Attending(0.1))
    near = reference_attention.paged_prefill(few.query, keys, few.paged, Attending(0.1))
    assert_close(far, near)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 120)), min_size=1, max_size=3),
    **SHAPES,
)
@settings(FEW, max_examples=6)
def test_any_shape(
    lengths: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    block_size: int,
    dim: int,
    dtype: torch.dtype,
    window: int | None,
    softcap: float | None,
    seed: int,
) -> None:
    contexts, queries = [prefix + tokens for prefix, tokens in lengths], [tokens for _, tokens in lengths]
    some = case(
        contexts, queries, kv_heads=kv_heads, group=group, block_size=block_size, dim=dim, dtype=dtype, seed=seed
    )
    check(some, Attending(dim**-0.5, window, softcap))
