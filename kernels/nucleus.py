"""Where the nucleus of each row ends (top_p), without a sort: sums of weights on either side of few marks.

Owns that search. The weight of a token is 2**40 * exp(logit - highest logit), cut to an integer: sums of integers are
the same in any order, so a row's threshold depends on the row alone, however it is divided and whoever stands beside
it. (What the cut takes off 128 Ki tokens is less than what fp32 rounds off their sum.) Must never read anything back to
the host.

Four launches. The first two read a row in chunks, to find its extent and then the weights of 16 equal slices of it; the
third gathers the logits of the one slice in which the threshold lies, some hundreds as a rule; in the last, one program
a row finds which of them it is, four bits of it at a time. The slices only save work: any division would do, as long as
a higher logit never comes into a later one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch_sizes import cdiv, next_power_of_2

CHUNK = 4096
"""Tokens of a row that a program looks at: 128 Ki make 32 programs."""

SLICES = 16
"""Of a row, by logit. Every token is compared with all of them: more would cost more than they save the last launch."""

AT_ONCE = 512
"""Tokens whose weights are added up at a time. A thread keeps 2 * 16 sums of 64 bits, in half of its registers."""


def nucleus(logits: Tensor, mass: Tensor) -> Tensor:
    rows, vocabulary = logits.shape
    chunks = cdiv(vocabulary, CHUNK)

    def scratch(dtype: torch.dtype, *shape: int) -> Tensor:
        # Each by itself: parts of one would be aligned now and then, and make variants of the kernels.
        return torch.empty(shape, dtype=dtype, device=logits.device)

    least, peak, depth = (scratch(torch.float32, rows) for _ in range(3))
    extents, shares = scratch(torch.float32, rows, chunks, 2), scratch(torch.int64, rows, chunks, SLICES)
    missing, found = scratch(torch.int64, rows), scratch(torch.int32, rows)
    candidates = scratch(torch.float32, rows, vocabulary)
    row = logits, mass, vocabulary, logits.stride(0)
    parts = {"PARTS": next_power_of_2(chunks), "SLICES": SLICES}
    at_once = min(AT_ONCE, CHUNK)
    _extend[(rows, chunks)](*row, extents, least, depth, found, CHUNK=CHUNK, num_warps=8)
    _weigh[(rows, chunks)](
        *row, extents, shares, least, peak, depth, CHUNK=CHUNK, AT_ONCE=at_once, **parts, num_warps=8
    )
    _gather[(rows, chunks)](*row, shares, peak, depth, missing, found, candidates, CHUNK=CHUNK, **parts, num_warps=8)
    _settle[(rows,)](candidates, vocabulary, peak, depth, missing, found, least, AT_ONCE=2 * at_once, num_warps=16)
    return least


@triton.jit
def _chunk(logits, vocabulary, row_stride, start, SIZE: tl.constexpr):
    """The row's logits from `start` on, -inf behind its end."""
    id_ = start + tl.arange(0, SIZE)
    return tl.load(logits + tl.program_id(0).to(tl.int64) * row_stride + id_, id_ < vocabulary, other=float("-inf"))


@triton.jit
def _weight(value, peak):
    return (tl.exp(value - peak) * 2.0**40).to(tl.int64)


@triton.jit
def _slice(value, peak, depth, SLICES: tl.constexpr):
    return tl.minimum(tl.minimum(peak - value, depth) * (SLICES / depth), SLICES - 1.0).to(tl.int32)


@triton.jit(do_not_specialize_on_alignment=["mass"])
def _extend(logits, mass, vocabulary, row_stride, extents, least, depth, found, CHUNK: tl.constexpr):
    """The highest and the lowest logit of the chunk, -inf apart. Until something else is found, a row keeps all."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if chunk == 0:
        tl.store(least + row, float("-inf"))
        tl.store(depth + row, 0.0)
        tl.store(found + row, 0)
    if tl.load(mass + row) >= 1:
        return
    value = _chunk(logits, vocabulary, row_stride, chunk * CHUNK, CHUNK)
    place = extents + (row * tl.num_programs(1) + chunk) * 2
    tl.store(place, tl.max(value))
    tl.store(place + 1, tl.min(tl.where(value == float("-inf"), float("inf"), value)))


@triton.jit(do_not_specialize_on_alignment=["mass"])
def _weigh(
    logits,
    mass,
    vocabulary,
    row_stride,
    extents,
    shares,
    least,
    peak,
    depth,
    CHUNK: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PARTS: tl.constexpr,
    SLICES: tl.constexpr,
):
    """The weights of the chunk's tokens in each slice. A row that is all of one height keeps what is as high."""
    row, chunk, chunks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    wanted = tl.load(mass + row)
    if wanted >= 1:
        return
    part = tl.arange(0, PARTS)
    place = extents + (row * chunks + part) * 2
    highest = tl.max(tl.load(place, part < chunks, other=float("-inf")))
    lowest = tl.min(tl.load(place + 1, part < chunks, other=float("inf")))
    # All that lies deeper than the logarithm has less than 1 - mass together: the threshold does not lie there.
    below = tl.where((lowest < highest) & (highest < float("inf")), highest - lowest, 0.0)
    below = tl.minimum(below, tl.log(vocabulary / (1 - wanted)))
    if chunk == 0:
        tl.store(least + row, highest)
        tl.store(peak + row, highest)
        tl.store(depth + row, below)
    if below <= 0:
        return
    slices = tl.arange(0, SLICES)
    sums = tl.zeros([SLICES, AT_ONCE], tl.int64)
    for start in tl.static_range(0, CHUNK, AT_ONCE):
        value = _chunk(logits, vocabulary, row_stride, chunk * CHUNK + start, AT_ONCE)
        which = _slice(value, highest, below, SLICES)
        sums += tl.where(which[None, :] == slices[:, None], _weight(value, highest)[None, :], 0)
    tl.store(shares + (row * chunks + chunk) * SLICES + slices, tl.sum(sums, 1))


@triton.jit(do_not_specialize_on_alignment=["mass"])
def _gather(
    logits,
    mass,
    vocabulary,
    row_stride,
    shares,
    peak,
    depth,
    missing,
    found,
    candidates,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    SLICES: tl.constexpr,
):
    """Brings the chunk's logits of the slice where the threshold lies to the row's candidates, in any order."""
    row, chunk, chunks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    below = tl.load(depth + row)
    if below <= 0:
        return
    part, slices = tl.arange(0, PARTS)[:, None], tl.arange(0, SLICES)
    share = tl.sum(tl.load(shares + (row * chunks + part) * SLICES + slices[None, :], part < chunks, other=0), 0)
    wanted = (tl.sum(share).to(tl.float64) * tl.load(mass + row).to(tl.float64)).to(tl.int64)
    wanted = tl.maximum(wanted, 1)  # whatever the mass is, the likeliest token stays
    chosen = tl.minimum(tl.sum((tl.cumsum(share, 0) < wanted).to(tl.int32)), SLICES - 1)
    if chunk == 0:
        tl.store(missing + row, wanted - tl.sum(tl.where(slices < chosen, share, 0)))
    value = _chunk(logits, vocabulary, row_stride, chunk * CHUNK, CHUNK)
    inside = _slice(value, tl.load(peak + row), below, SLICES) == chosen
    inside = (inside & (value > float("-inf"))).to(tl.int32)
    count = tl.sum(inside)
    if count > 0:
        place = tl.atomic_add(found + row, count, sem="relaxed") + tl.cumsum(inside, 0) - 1
        tl.store(candidates + row * vocabulary + place, value, inside > 0)


@triton.jit
def _settle(candidates, vocabulary, peak, depth, missing, found, least, AT_ONCE: tl.constexpr):
    """The highest candidate that has the missing weight above it and with it."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(depth + row) <= 0:
        return
    highest, count, wanted = tl.load(peak + row), tl.load(found + row), tl.load(missing + row)
    candidates += row * vocabulary
    threshold = tl.full([], 0, tl.uint32)
    for four_bits in range(8):
        shift = 28 - 4 * four_bits
        marks = threshold + (tl.arange(0, 16) << shift).to(tl.uint32)
        sums = tl.zeros([16, AT_ONCE], tl.int64)
        for start in range(0, count, AT_ONCE):
            place = start + tl.arange(0, AT_ONCE)
            value = tl.load(candidates + place, place < count, other=float("-inf"))
            sums += tl.where(_key(value)[None, :] >= marks[:, None], _weight(value, highest)[None, :], 0)
        above = tl.sum(sums, 1)
        wanted = tl.minimum(wanted, tl.max(above))
        digit = tl.sum((above >= wanted).to(tl.int32)) - 1
        threshold += (digit << shift).to(tl.uint32)
    tl.store(least + row, _value(threshold))


@triton.jit
def _key(value):
    """An integer for each fp32 number, in the same order."""
    bits = value.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 1, ~bits, bits | 0x80000000)


@triton.jit
def _value(key):
    return tl.where(key >> 31 == 1, key ^ 0x80000000, ~key).to(tl.float32, bitcast=True)
