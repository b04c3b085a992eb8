"""Keys and values arrive in the slots named for them, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.kv_store import store_kv
from kernels.ops import KvCache

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cache(
    blocks: int, heads: int, block_size: int, width: int, dtype: torch.dtype, scales: tuple[float, float] = (1.0, 1.0)
) -> KvCache:
    """Full of sevens, so that a stray write shows."""
    sevens = torch.full((blocks, heads, block_size, width), 7.0, device=DEVICE)
    return KvCache(sevens.to(dtype, copy=True), sevens.to(dtype, copy=True), *scales)


def same(one: KvCache, other: KvCache) -> bool:
    return torch.equal(one.key.float(), other.key.float()) and torch.equal(one.value.float(), other.value.float())


def fused(tokens: int, heads: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values as views into one fused product, as the models have them."""
    generator = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(tokens, 4, heads, width, generator=generator).to(DEVICE, dtype)
    return qkv[:, 2], qkv[:, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("heads", "width", "block_size"), [(1, 64, 16), (3, 80, 16), (2, 128, 32), (10, 256, 16)])
def test_each_token_lands_in_its_slot_and_nothing_else_changes(
    heads: int, width: int, block_size: int, dtype: torch.dtype
) -> None:
    ours, expected = cache(5, heads, block_size, width, dtype), cache(5, heads, block_size, width, dtype)
    key, value = fused(5, heads, width, dtype)
    slots = torch.randperm(5 * block_size, generator=torch.Generator().manual_seed(width))[:5].to(DEVICE)
    slots[2] = -1
    store_kv(key, value, ours, slots)
    reference.store_kv(key, value, expected, slots)
    assert same(ours, expected)
    kept = int(slots[0])
    assert torch.equal(ours.key[kept // block_size, :, kept % block_size], key[0])
    assert torch.equal(ours.value[kept // block_size, :, kept % block_size], value[0])


def test_padding_writes_nothing() -> None:
    ours = cache(2, 2, 16, 64, torch.float32)
    key, value = fused(3, 2, 64, torch.float32)
    store_kv(key, value, ours, torch.full((3,), -1, device=DEVICE))
    assert same(ours, cache(2, 2, 16, 64, torch.float32))


def test_a_cache_may_be_a_strided_part_of_a_larger_one() -> None:
    whole = torch.full((2, 4, 3, 16, 64), 7.0, device=DEVICE)
    layer = KvCache(whole[0, :, :2], whole[1, :, 1:])
    expected = cache(4, 2, 16, 64, torch.float32)
    key, value = fused(2, 2, 64, torch.float32)
    slots = torch.tensor([63, 0], device=DEVICE)
    store_kv(key, value, layer, slots)
    reference.store_kv(key, value, expected, slots)
    assert same(layer, expected)
    assert bool((whole[0, :, 2] == 7).all())


@pytest.mark.parametrize("store", [store_kv, reference.store_kv])
def test_fp8_divides_by_the_scale_and_saturates(store: object) -> None:
    # Values that FP8 holds exactly: how the interpreter rounds others is not how the hardware does.
    exact = torch.tensor([1.0, -1.5, 0.25, 416.0, -448.0, 3.25, 0.0, 10.0], device=DEVICE)
    ours = cache(2, 1, 16, 8, torch.float8_e4m3fn, (0.5, 4.0))
    key, value = (exact * 0.5)[None, None], (exact * 4.0)[None, None]
    assert callable(store)
    store(key, value, ours, torch.tensor([17], device=DEVICE))
    assert torch.equal(ours.key[1, 0, 1].float(), exact)
    assert torch.equal(ours.value[1, 0, 1].float(), exact)
    beyond = torch.tensor([[[500.0, -1e9, 3e38, -449.0, 448.0, 0.0, 1.0, 464.5]]], device=DEVICE)
    store(beyond * 0.5, beyond, ours, torch.tensor([0], device=DEVICE))
    assert ours.key[0, 0, 0].float().tolist() == [448.0, -448.0, 448.0, -448.0, 448.0, 0.0, 1.0, 448.0]
