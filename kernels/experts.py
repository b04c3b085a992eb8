"""The grouped expert product of a mixture of experts: each token through its own few experts.

Owns the routing of (token, expert) pairs into tiles of one expert each, and the two products over those tiles. Four
launches: route, gates and ups with SiLU, downs, sum. All shapes follow from the arguments' shapes, and no two programs
write to one place: the results are the same every time, and a CUDA graph can hold it. Must never ask the device what
was routed.

A pair is p = token * k + choice. `order` lists the pairs expert by expert; a tile is up to BLOCK_M neighbours in it
that share an expert. There are never more tiles than pairs, nor than pairs // BLOCK_M + E; those left over are empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch_sizes import cdiv, next_power_of_2
from kernels.tuning import is_roomy


@dataclass(frozen=True, slots=True)
class Tiling:
    """Rows, columns and depth of a tile's product, and how it is launched."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def tiling(pairs: int, experts: int, dtype: torch.dtype, roomy: bool = True) -> Tiling:
    """By how many pairs an expert gets. Few: what counts is to have many bytes of weights under way."""
    mean = pairs / experts
    if dtype == torch.float32:  # exact products, which the tensor cores do not make: for parity, not for speed
        return Tiling(rows=16 if mean <= 16 else 32, columns=32, depth=64, warps=4, stages=2)
    if mean <= 16:
        return Tiling(rows=16, columns=32, depth=128, warps=4, stages=4)
    if mean <= 48:
        return Tiling(rows=32, columns=64, depth=128, warps=4, stages=3)
    if mean <= 96 or not roomy:
        return Tiling(rows=64, columns=64, depth=64, warps=4, stages=4)
    return Tiling(rows=128, columns=128, depth=64, warps=8, stages=3)


def experts(x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    tokens, hidden = x.shape
    count, width = gate_up.shape[0], gate_up.shape[1] // 2
    choices = chosen.shape[1]
    pairs = tokens * choices
    tile = tiling(pairs, count, x.dtype, is_roomy(x.device))
    chosen, weights = chosen.contiguous(), weights.contiguous()
    order, tiles = routed(chosen, count, tile.rows)
    middle = torch.empty((pairs, width), dtype=x.dtype, device=x.device)
    parts = torch.empty((pairs, hidden), dtype=x.dtype, device=x.device)
    out = torch.empty((tokens, hidden), dtype=x.dtype, device=x.device)
    launch = {
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_K": tile.depth,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
    _gate_up[(tiles.shape[1], cdiv(width, tile.columns))](
        x, gate_up, middle, order, tiles, choices, hidden, width, x.stride(0), *gate_up.stride()[:2], **launch
    )
    _down[(tiles.shape[1], cdiv(hidden, tile.columns))](
        middle, down, parts, order, tiles, weights, width, hidden, *down.stride()[:2], **launch
    )
    block = min(1024, next_power_of_2(hidden))
    _sum[(tokens, cdiv(hidden, block))](parts, out, hidden, CHOICES=choices, BLOCK=block, num_warps=4)
    return out


def routed(chosen: Tensor, count: int, rows: int) -> tuple[Tensor, Tensor]:
    """`order` [pairs] and, for each tile, its expert, its first row in `order` and the row behind its last: [3, tiles].
    All int32. An empty tile has no rows.
    """
    pairs = chosen.numel()
    order = torch.empty(pairs, dtype=torch.int32, device=chosen.device)
    tiles = torch.empty((3, min(pairs, pairs // rows + count)), dtype=torch.int32, device=chosen.device)
    block, warps = (1024, 4) if pairs <= 1024 else (4096, 16)
    _route[(count,)](
        chosen,
        order,
        tiles,
        pairs,
        tiles.shape[1],
        EXPERTS=count,
        BINS=max(128, next_power_of_2(count + 1)),
        BLOCK=block,
        BLOCK_M=rows,
        num_warps=warps,
    )
    return order, tiles


@triton.jit(do_not_specialize=["pairs", "tile_count"])
def _route(
    chosen,
    order,
    tiles,
    pairs,
    tile_count,
    EXPERTS: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One program an expert: counts every expert's pairs, then lists its own."""
    expert = tl.program_id(0)
    column, bin_ = tl.arange(0, BLOCK), tl.arange(0, BINS)
    counts = tl.zeros([BINS], tl.int32)
    for begin in range(0, pairs, BLOCK):
        # What lies behind the last pair is counted in a bin of its own.
        ids = tl.load(chosen + begin + column, begin + column < pairs, other=EXPERTS).to(tl.int32)
        counts += tl.histogram(ids, BINS)
    counts = tl.where(bin_ < EXPERTS, counts, 0)
    tile_counts = (counts + BLOCK_M - 1) // BLOCK_M
    first = tl.sum(tl.where(bin_ < expert, counts, 0))
    end = tl.sum(tl.where(bin_ <= expert, counts, 0))
    first_tile = tl.sum(tl.where(bin_ < expert, tile_counts, 0))
    end_tile = tl.sum(tl.where(bin_ <= expert, tile_counts, 0))

    place = first
    for begin in range(0, pairs, BLOCK):
        mine = tl.load(chosen + begin + column, begin + column < pairs, other=EXPERTS) == expert
        rank = tl.cumsum(mine.to(tl.int32))
        tl.store(order + place + rank - 1, begin + column, mine)
        place += tl.sum(mine.to(tl.int32))

    for begin in range(0, tile_count, BLOCK):
        tile = begin + column
        mine = (tile >= first_tile) & (tile < end_tile)
        row = first + (tile - first_tile) * BLOCK_M
        tl.store(tiles + tile, expert, mine)
        tl.store(tiles + tile_count + tile, row, mine)
        tl.store(tiles + 2 * tile_count + tile, tl.minimum(row + BLOCK_M, end), mine)
        if expert == EXPERTS - 1:
            empty = (tile >= end_tile) & (tile < tile_count)
            tl.store(tiles + tile, 0, empty)
            tl.store(tiles + tile_count + tile, 0, empty)
            tl.store(tiles + 2 * tile_count + tile, 0, empty)


@triton.jit
def _tile(tiles, order, BLOCK_M: tl.constexpr):
    """This program's tile: its expert, its rows in `order`, which of them are real, and their pairs."""
    tile, tile_count = tl.program_id(0), tl.num_programs(0)
    expert = tl.load(tiles + tile).to(tl.int64)
    begin = tl.load(tiles + tile_count + tile)
    end = tl.load(tiles + 2 * tile_count + tile)
    row = begin + tl.arange(0, BLOCK_M)
    return expert, row.to(tl.int64), row < end, tl.load(order + row, row < end, other=0).to(tl.int64), begin < end


@triton.jit
def _gate_up(
    x,
    weight,
    out,
    order,
    tiles,
    choices,
    depth,
    width,
    x_row,
    weight_expert,
    weight_row,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[row] = silu_mul(x[token of row] @ weight[expert].T), rows in the sequence of `order`."""
    expert, row, real, pair, any_ = _tile(tiles, order, BLOCK_M)
    if any_:
        column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        left = x + (pair // choices)[:, None] * x_row + k[None, :]
        right = weight + expert * weight_expert + column[None, :].to(tl.int64) * weight_row + k[:, None]
        up_offset = width.to(tl.int64) * weight_row
        gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for begin in range(0, depth, BLOCK_K):
            a = tl.load(left + begin, real[:, None] & (begin + k < depth)[None, :], other=0.0)
            inside = (column < width)[None, :] & (begin + k < depth)[:, None]
            b = tl.load(right + begin, inside, other=0.0)
            c = tl.load(right + up_offset + begin, inside, other=0.0)
            gate = tl.dot(a, b, gate, input_precision="ieee")
            up = tl.dot(a, c, up, input_precision="ieee")
        place = out + row[:, None] * width + column[None, :]
        value = gate * tl.sigmoid(gate) * up
        tl.store(place, value.to(out.dtype.element_ty), real[:, None] & (column < width)[None, :])


@triton.jit
def _down(
    x,
    weight,
    out,
    order,
    tiles,
    scales,
    depth,
    width,
    weight_expert,
    weight_row,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[pair of row] = scales[pair] * (x[row] @ weight[expert].T)."""
    expert, row, real, pair, any_ = _tile(tiles, order, BLOCK_M)
    if any_:
        column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        left = x + row[:, None] * depth + k[None, :]
        right = weight + expert * weight_expert + column[None, :].to(tl.int64) * weight_row + k[:, None]
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for begin in range(0, depth, BLOCK_K):
            a = tl.load(left + begin, real[:, None] & (begin + k < depth)[None, :], other=0.0)
            b = tl.load(right + begin, (column < width)[None, :] & (begin + k < depth)[:, None], other=0.0)
            total = tl.dot(a, b, total, input_precision="ieee")
        total *= tl.load(scales + pair, real, other=0.0)[:, None]
        place = out + pair[:, None] * width + column[None, :]
        tl.store(place, total.to(out.dtype.element_ty), real[:, None] & (column < width)[None, :])


@triton.jit
def _sum(parts, out, width, CHOICES: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for choice in tl.static_range(CHOICES):
        part = parts + (token * CHOICES + choice) * width + column
        total += tl.load(part, column < width, other=0.0).to(tl.float32)
    tl.store(out + token * width + column, total.to(out.dtype.element_ty), column < width)
