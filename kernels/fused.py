"""The small operations between the matrix products, each one pass over its data: norms, rotary embedding, gated SiLU.

Owns their tiling: one row a program, or several short ones. Rounds where `reference.py` rounds. Must never keep state.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch_sizes import cdiv, next_power_of_2

TILE = 1024
"""Elements of a program, where the rows are short enough to choose."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    width = x.shape[-1]
    heads = x.shape[1] if x.dim() == 3 else 1
    block = next_power_of_2(width)
    rows = max(1, TILE // block) if heads > 1 else 1
    _rms_norm[(cdiv(x.shape[0] * heads, rows),)](
        x,
        weight,
        out,
        x.shape[0] * heads,
        heads,
        x.stride(0),
        x.stride(1) if x.dim() == 3 else 0,
        eps,
        WIDTH=width,
        BLOCK=block,
        ROWS=rows,
        num_warps=_warps(rows * block),
    )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tokens, width = x.shape
    block = next_power_of_2(width)
    _add_rms_norm[(tokens,)](
        x,
        residual,
        weight,
        out,
        x.stride(0),
        residual.stride(0),
        eps,
        WIDTH=width,
        BLOCK=block,
        num_warps=_warps(block),
    )
    return out


def rope(query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    tokens, query_heads, key_heads = positions.shape[0], query.shape[1], key.shape[1]
    half = cos_sin.shape[1] // 2
    block_half = next_power_of_2(half)
    block_heads = min(next_power_of_2(max(query_heads, key_heads)), max(1, TILE // block_half))
    query_tiles, key_tiles = cdiv(query_heads, block_heads), cdiv(key_heads, block_heads)
    _rope[(tokens, query_tiles + key_tiles)](
        query,
        key,
        positions,
        cos_sin,
        query_heads,
        key_heads,
        query_tiles,
        *query.stride()[:2],
        *key.stride()[:2],
        cos_sin.stride(0),
        HALF=half,
        BLOCK_HALF=block_half,
        BLOCK_HEADS=block_heads,
        num_warps=4,
    )


def silu_mul(gate_up: Tensor) -> Tensor:
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    block = min(TILE, next_power_of_2(width))
    _silu_mul[(tokens, cdiv(width, block))](
        gate_up, out, width, gate_up.stride(0), BLOCK=block, num_warps=_warps(block)
    )
    return out


def _warps(elements: int) -> int:
    """Eight elements a thread or more: 16 bytes of a 16-bit dtype in one access."""
    return min(16, max(1, elements // 256))


@triton.jit(do_not_specialize=["rows"])
def _rms_norm(
    x, weight, out, rows, heads, x_row, x_head, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < WIDTH)
    place = (row // heads) * x_row + (row % heads) * x_head + column
    narrow = tl.load(x + place, inside, other=0.0)
    scale = tl.load(weight + column, column < WIDTH, other=0.0)
    tl.store(out + row * WIDTH + column, _normalised(narrow, scale, eps, WIDTH), inside)


@triton.jit
def _add_rms_norm(x, residual, weight, out, x_row, residual_row, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < WIDTH
    kept = tl.load(residual + row * residual_row + column, inside, other=0.0)
    added = tl.load(x + row * x_row + column, inside, other=0.0)
    scale = tl.load(weight + column, inside, other=0.0)
    # The norm is that of the sum as it is kept, rounded.
    total = (kept.to(tl.float32) + added.to(tl.float32)).to(kept.dtype)
    tl.store(residual + row * residual_row + column, total, inside)
    tl.store(out + row * WIDTH + column, _normalised(total, scale, eps, WIDTH), inside)


@triton.jit
def _normalised(x, weight, eps, WIDTH: tl.constexpr):
    wide = x.to(tl.float32)
    mean_square = tl.sum(wide * wide, axis=1) / WIDTH
    normalised = (wide * tl.rsqrt(mean_square + eps)[:, None]).to(x.dtype)
    return (normalised.to(tl.float32) * weight.to(tl.float32)).to(x.dtype)


# Positions may be a slice of a larger buffer: how it is aligned must not compile the kernel again.
@triton.jit(do_not_specialize_on_alignment=["positions"])
def _rope(
    query,
    key,
    positions,
    cos_sin,
    query_heads,
    key_heads,
    query_tiles,
    query_row,
    query_head,
    key_row,
    key_head,
    cos_sin_row,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    pair = tl.arange(0, BLOCK_HALF)
    angle = cos_sin + tl.load(positions + token) * cos_sin_row + pair
    cosine = tl.load(angle, pair < HALF, other=0.0)[None, :]
    sine = tl.load(angle + HALF, pair < HALF, other=0.0)[None, :]
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    if tile < query_tiles:
        head += tile * BLOCK_HEADS
        place = query + token * query_row + head * query_head + pair[None, :]
        _rotate(place, (head < query_heads) & (pair < HALF)[None, :], cosine, sine, HALF)
    else:
        head += (tile - query_tiles) * BLOCK_HEADS
        place = key + token * key_row + head * key_head + pair[None, :]
        _rotate(place, (head < key_heads) & (pair < HALF)[None, :], cosine, sine, HALF)


@triton.jit
def _rotate(place, inside, cosine, sine, HALF: tl.constexpr):
    left, right = tl.load(place, inside, other=0.0), tl.load(place + HALF, inside, other=0.0)
    dtype = left.dtype
    left, right = left.to(tl.float32), right.to(tl.float32)
    tl.store(place, (left * cosine - right * sine).to(dtype), inside)
    tl.store(place + HALF, (right * cosine + left * sine).to(dtype), inside)


@triton.jit
def _silu_mul(gate_up, out, width, gate_up_row, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gates = gate_up + row * gate_up_row + column
    gate = tl.load(gates, column < width, other=0.0).to(tl.float32)
    up = tl.load(gates + width, column < width, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), column < width)
