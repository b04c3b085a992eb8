"""Writes the keys and values of a step's tokens to their places in the paged cache.

Owns the cast to the cache's dtype: FP8 is x / scale, saturated. Must never write for slot -1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch_sizes import cdiv, next_power_of_2
from kernels.ops import KvCache

TILE = 2048
"""Elements of the keys that a program moves, and as many of the values."""


def store_kv(key: Tensor, value: Tensor, cache: KvCache, slots: Tensor) -> None:
    tokens, heads, width = key.shape
    block_width = next_power_of_2(width)
    block_heads = min(next_power_of_2(heads), max(1, TILE // block_width))
    _store[(tokens, cdiv(heads, block_heads))](
        key,
        value,
        cache.key,
        cache.value,
        slots,
        cache.key_scale,
        cache.value_scale,
        heads,
        cache.block_size,
        *key.stride()[:2],
        *value.stride()[:2],
        *cache.key.stride()[:3],
        *cache.value.stride()[:3],
        WIDTH=width,
        BLOCK_WIDTH=block_width,
        BLOCK_HEADS=block_heads,
        FP8=cache.key.dtype == torch.float8_e4m3fn,
        num_warps=4,
    )


# Slots may be a slice of a larger buffer: how it is aligned must not compile the kernel again.
@triton.jit(do_not_specialize_on_alignment=["slots"])
def _store(
    key,
    value,
    cached_key,
    cached_value,
    slots,
    key_scale,
    value_scale,
    heads,
    block_size,
    key_row,
    key_head,
    value_row,
    value_head,
    cached_key_block,
    cached_key_head,
    cached_key_offset,
    cached_value_block,
    cached_value_head,
    cached_value_offset,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    FP8: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot >= 0:
        block, offset = slot // block_size, slot % block_size
        head = tl.program_id(1).to(tl.int64) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
        column = tl.arange(0, BLOCK_WIDTH)[None, :]
        inside = (head < heads) & (column < WIDTH)
        keys = tl.load(key + token * key_row + head * key_head + column, inside)
        values = tl.load(value + token * value_row + head * value_head + column, inside)
        key_place = block * cached_key_block + head * cached_key_head + offset * cached_key_offset + column
        value_place = block * cached_value_block + head * cached_value_head + offset * cached_value_offset + column
        tl.store(cached_key + key_place, _cast(keys, key_scale, cached_key, FP8), inside)
        tl.store(cached_value + value_place, _cast(values, value_scale, cached_value, FP8), inside)


@triton.jit
def _cast(x, scale, cached, FP8: tl.constexpr):
    if FP8:
        # Divided as torch divides, so that ties round the same way; a NaN stays one and is not mistaken for a limit.
        x = tl.clamp(tl.div_rn(x.to(tl.float32), scale), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    return x.to(cached.dtype.element_ty)
