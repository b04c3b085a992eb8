"""Draws one token a row from logits: the Gumbel argmax in one pass over the vocabulary, without a sort or a softmax.

Owns the kernel's layout of the noise that `philox.py` defines: the same bits for the same (seed, position, token id).
The vocabulary is split over programs so that a single row fills the device; the split never changes the result, for a
maximum does not depend on the order, and among equals the lowest token id wins. Must never return an id outside the
vocabulary, whatever the logits are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch_sizes import cdiv
from kernels.tuning import multiprocessors

TILE = 1024
"""Tokens that a program looks at at once: one Philox block for every four."""

MOST_SPLITS = 256
"""Parts of a row at most, which one program then compares."""


def sample(logits: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    rows, vocabulary = logits.shape
    tiles = cdiv(vocabulary, TILE)
    wanted = cdiv(4 * multiprocessors(logits.device), max(rows, 1))
    steps = cdiv(tiles, min(tiles, wanted, MOST_SPLITS))
    splits = cdiv(tiles, steps)
    best = torch.empty((rows, splits), dtype=torch.float32, device=logits.device)
    token = torch.empty((rows, splits), dtype=torch.int32, device=logits.device)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _draw[(rows, splits)](
        logits, seeds, positions, best, token, vocabulary, logits.stride(0), steps, TILE=TILE, num_warps=4
    )
    _pick[(rows,)](best, token, out, splits, BLOCK=MOST_SPLITS, num_warps=1)
    return out


@triton.jit(do_not_specialize=["steps"], do_not_specialize_on_alignment=["seeds", "positions"])
def _draw(logits, seeds, positions, best, token, vocabulary, row_stride, steps, TILE: tl.constexpr):
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    seed, position = tl.load(seeds + row), tl.load(positions + row)
    column = tl.arange(0, TILE)
    begin = split * steps * TILE
    top = tl.full([TILE], float("-inf"), tl.float32)
    # Of a row without a possible token, the first of the split is named.
    winner = tl.zeros([TILE], tl.int32) + begin
    for step in range(steps):
        id_ = begin + step * TILE + column
        value = tl.load(logits + row * row_stride + id_, id_ < vocabulary, other=float("-inf")).to(tl.float32)
        value += _gumbel(token_bits(seed, position, (begin + step * TILE) // 4, TILE))
        winner = tl.where(value > top, id_, winner)
        top = tl.where(value > top, value, top)
    _keep_best(top, winner, best + row * tl.num_programs(1) + split, token + row * tl.num_programs(1) + split)


@triton.jit(do_not_specialize=["splits"])
def _pick(best, token, out, splits, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK)
    value = tl.load(best + row * splits + split, split < splits, other=float("-inf"))
    id_ = tl.load(token + row * splits + split, split < splits, other=2**31 - 1)
    tl.store(out + row, tl.min(tl.where(value == tl.max(value), id_, 2**31 - 1)).to(tl.int64))


@triton.jit
def _keep_best(value, id_, best, token):
    top = tl.max(value)
    tl.store(best, top)
    tl.store(token, tl.min(tl.where(value == top, id_, 2**31 - 1)))


@triton.jit
def token_bits(seed, position, group, TILE: tl.constexpr):
    """The bits of the TILE tokens from token 4 * group on."""
    counter = (group + tl.arange(0, TILE // 4)).to(tl.uint32)
    zero = tl.zeros_like(counter)
    low, high = (position & 0xFFFFFFFF).to(tl.uint32), (position >> 32 & 0xFFFFFFFF).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, counter, zero + low, zero + high, zero)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def _gumbel(bits):
    u = tl.clamp(bits.to(tl.float32) * 2.0**-32, 2.0**-33, 1 - 2.0**-24)
    series = u * (1 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4))))
    return -tl.log(tl.where(u < 2.0**-8, series, -tl.log(1 - u)))
