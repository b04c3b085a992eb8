"""The Triton kernels of paged decode compute what the oracle computes; here in the interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference_attention
from kernels.ops import Attending, KvCache, Paged
from kernels.paged_decode import paged_decode
from tests.kernels.paged_kv import DEVICE, FEW, SHAPES, Case, assert_close, case

FP32, FP16, FP8 = torch.float32, torch.float16, torch.float8_e4m3fn
RAGGED = [1, 0, 64, 65, 200]


def check(of: Case, attending: Attending) -> None:
    decoded = paged_decode(of.query, of.cache, of.paged, attending)
    assert decoded.dtype == of.query.dtype
    wanted = reference_attention.paged_decode(of.query, of.cache, of.paged, attending)
    assert_close(decoded, wanted, attending.softcap)
    assert not decoded[of.paged.context_lens == 0].any()


@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
@pytest.mark.parametrize(
    "attending",
    [Attending(0.1), Attending(0.1, window=33), Attending(0.1, window=500), Attending(0.1, softcap=2.0)],
    ids=str,
)
def test_ragged_lengths(attending: Attending, dtype: torch.dtype) -> None:
    check(case(RAGGED, dtype=dtype), attending)


@pytest.mark.parametrize(("kv_heads", "group"), [(2, 1), (2, 5), (1, 20), (1, 65)])
def test_any_number_of_query_heads_share_a_kv_head(kv_heads: int, group: int) -> None:
    check(case([90], kv_heads=kv_heads, group=group), Attending(0.1))


@pytest.mark.parametrize(("block_size", "dim"), [(16, 80), (32, 128), (64, 64), (256, 64)])
def test_block_sizes_and_head_dimensions(block_size: int, dim: int) -> None:
    check(case([70, 130], block_size=block_size, dim=dim), Attending(0.1, window=90))


def test_an_fp8_cache_is_read_with_its_scales() -> None:
    check(case([70, 5], cached=FP8, scales=(0.5, 0.03)), Attending(0.1, softcap=4.0))


def test_rows_of_the_query_may_be_strided() -> None:
    tight = case([3, 90])
    fused = torch.full((2, 7, 64), torch.nan, device=DEVICE)
    fused[:, 1:3] = tight.query
    check(Case(fused[:, 1:3], tight.cache, tight.paged, tight.keys, tight.values), Attending(0.1))


@pytest.mark.parametrize("multiprocessors", [1, 4, 20])
def test_a_long_sequence_is_shared_out_among_the_multiprocessors(
    multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """38 tiles: in several rounds, in one, and in more splits than are brought together at once."""
    monkeypatch.setattr("kernels.paged_decode.multiprocessors", lambda device: multiprocessors)
    check(case([7, 600], group=1, dim=256), Attending(0.06))


def test_more_sequences_than_one_look_at_the_lengths_takes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.paged_decode.MANY", 4)
    check(case([0, 70, 0, 5, 0, 0, 0, 0, 1, 64, 200], group=1, dim=16), Attending(0.2))


def test_no_sequences() -> None:
    one = case([5])
    none = Paged(one.paged.query_starts[:1], one.paged.context_lens[:0], one.paged.block_tables[:0], 0, 0)
    assert paged_decode(one.query[:0], one.cache, none, Attending(0.1)).shape == (0, 2, 64)


def test_a_cache_may_hold_more_than_2_to_the_31_elements() -> None:
    """Memory that nobody touches costs nothing: of these 4 GiB, the last blocks are written."""
    few = case([100, 3], block_size=256, dtype=FP16)
    blocks = 2**31 // few.cache.key[0].numel() + len(few.cache.key)
    store = torch.empty(blocks, *few.cache.key.shape[1:], dtype=FP16, device=DEVICE)
    store[-len(few.cache.key) :] = few.cache.key
    tables = few.paged.block_tables.clone()
    tables[:, 0] += blocks - len(few.cache.key)
    far = paged_decode(few.query, KvCache(store, store), replace(few.paged, block_tables=tables), Attending(0.1))
    near = reference_attention.paged_decode(few.query, KvCache(few.cache.key, few.cache.key), few.paged, Attending(0.1))
    assert_close(far, near)


def test_keys_and_values_of_different_layout_are_refused() -> None:
    some = case([5], kv_heads=2)
    turned = some.cache.value.transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(ValueError, match="laid out alike"):
        paged_decode(some.query, KvCache(some.cache.key, turned), some.paged, Attending(0.1))


@given(
    lengths=st.lists(st.integers(0, 260), min_size=1, max_size=3),
    **SHAPES,
)
@settings(FEW, max_examples=5)
def test_any_shape(
    lengths: list[int],
    kv_heads: int,
    group: int,
    block_size: int,
    dim: int,
    dtype: torch.dtype,
    window: int | None,
    softcap: float | None,
    seed: int,
) -> None:
    some = case(
        lengths, kv_heads=kv_heads, group=group, block_size=block_size, dim=dim, dtype=dtype, seed=seed
    )  # fmt: skip
    check(some, Attending(dim**-0.5, window, softcap))
