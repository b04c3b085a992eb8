"""What paged decode and paged prefill share on the device: the walk of some query rows over tiles of paged keys and
values, with the softmax folded in as it goes.

Owns the reading of the cache through block tables, the masks and the running softmax (in powers of two: log2(e) is
folded into the factor of the scores). Must never know how the work was divided among programs.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from kernels.ops import Attending, KvCache

LOG2_E = math.log2(math.e)
# Of products of fp32, which then keep nearly all their digits on the tensor cores; other types know no choice.
PRECISION = tl.constexpr("tf32x3")


def score_factors(attending: Attending, cache: KvCache) -> tuple[float, float]:
    """What `walk` multiplies scores with, so that they are exponents of two: the inner factor, and the outer one of a
    softcap (else 0). The inner one must be positive."""
    inner = attending.scale * cache.key_scale
    if attending.softcap is None:
        return inner * LOG2_E, 0.0
    return inner * 2 * LOG2_E / attending.softcap, attending.softcap * LOG2_E


def strides(cache: KvCache) -> tuple[int, ...]:
    """Elements from one block, head and token to the next, the same for keys and values. Raises ValueError where they
    differ: the kernels find both by one calculation."""
    steps = cache.key.stride()
    if steps != cache.value.stride() or steps[3] != 1:
        raise ValueError(f"keys and values must be laid out alike, D contiguous: {steps}, {cache.value.stride()}")
    return steps[:3]


@triton.jit
def _blocks(table, tile, end, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """The block of each token of a tile, or of all. What lies behind the context's blocks in the table is no block id.
    64 bits wide before they meet a stride: a cache has more than 2**31 elements."""
    if BLOCK >= TILE:
        block = tl.load(table + tile * TILE // BLOCK, mask=tile * TILE < end, other=0)
    else:
        positions = tile * TILE + tl.arange(0, TILE)
        block = tl.load(table + positions // BLOCK, mask=positions < end, other=0)
    return block.to(tl.int64)


@triton.jit
def walk(
    first,
    last,
    query,
    own,
    end,
    accumulated,
    highest,
    total,
    key,
    value,
    table,
    block_stride,
    token_stride,
    window,
    inner,
    outer,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """Attends over the tiles first to last (excluded), TILE tokens each; returns (accumulated, highest, total).

    query: [ROWS, PADDED_DIM]; own: [ROWS], the position of each row; end: tokens of the context. key and value point to
    their head in block 0, table to the sequence's row. Without MASKED every row sees every token of the tiles.
    """
    if key.dtype.element_ty == tl.float8e4nv and query.dtype == tl.bfloat16:
        query = query.to(tl.float16)  # holds every FP8 value, and the device converts straight to it
    columns = tl.arange(0, TILE)
    dims = tl.arange(0, PADDED_DIM)
    block = _blocks(table, first, end, BLOCK, TILE)
    for tile in range(first, last):
        positions = tile * TILE + columns
        # Block ids are read a tile ahead: in the tile that needs them, they would take half of the pipeline's depth.
        following = _blocks(table, tile + 1, end, BLOCK, TILE)
        at = (block * block_stride + (positions % BLOCK) * token_stride)[:, None] + dims[None, :]
        block = following
        if MASKED:
            # Values as well: a weight of 0 does not help against a NaN in memory that nobody wrote.
            present = (positions < end)[:, None] & (dims < DIM)[None, :]
            keys = tl.load(key + at, mask=present, other=0.0)
            values = tl.load(value + at, mask=present, other=0.0)
        elif PADDED_DIM > DIM:
            keys = tl.load(key + at, mask=(dims < DIM)[None, :], other=0.0)
            values = tl.load(value + at, mask=(dims < DIM)[None, :], other=0.0)
        else:
            keys = tl.load(key + at)
            values = tl.load(value + at)

        scores = tl.dot(query, tl.trans(keys.to(query.dtype)), input_precision=PRECISION)
        if CAPPED:  # with tanh(x) = 1 - 2 / (1 + exp(2 x)), which ends well on both sides
            scores = outer - 2 * outer / (1 + tl.exp2(scores * inner))
        if MASKED:
            visible = positions[None, :] <= own[:, None]
            if WINDOWED:
                visible = visible & (positions[None, :] > own[:, None] - window)
            scores = tl.where(visible, scores, float("-inf"))
        # Without a softcap the factor is left to the exponent, where it costs nothing: one fused multiply-add.
        factor = 1.0 if CAPPED else inner
        risen = tl.maximum(highest, tl.max(scores, 1) * factor)
        # A row that has seen nothing yet stays at -inf; -inf - -inf would be no number.
        level = tl.where(risen == float("-inf"), 0.0, risen)
        weights = tl.exp2(scores * factor - level[:, None])
        fading = tl.exp2(highest - level)
        total = total * fading + tl.sum(weights, 1)
        accumulated = accumulated * fading[:, None]
        accumulated = tl.dot(weights.to(query.dtype), values.to(query.dtype), accumulated, input_precision=PRECISION)
        highest = risen
    return accumulated, highest, total
