"""Paged decode attention: one query token a sequence, the KV of each split over as many programs as there is room for.

Owns the division of that work. All tiles of all sequences are shared out in splits of about equal length, so that one
long sequence among short ones, or alone, keeps every multiprocessor busy. Each program finds its own split from the
context lengths on the device: the grid depends on shapes alone, and a captured CUDA graph stays valid at any lengths.
What changes from step to step (lengths, widths, alignments of small tensors) makes no new variant of a kernel: nothing
is compiled while serving that a first step has not compiled. Must never ask the device for anything from the host.

An item is one split of one sequence; items are numbered through the batch, alike for every KV head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch_sizes import cdiv, next_power_of_2
from kernels.ops import Attending, KvCache, Paged
from kernels.tiles import score_factors, strides, walk
from kernels.tuning import decode_config, launch, multiprocessors

# How many lengths are read at a time when a program looks for its place among them.
MANY = 256
# How many splits of a sequence are read at a time when they are brought together.
AT_ONCE = 32


def paged_decode(query: Tensor, cache: KvCache, paged: Paged, attending: Attending) -> Tensor:
    """Attention of one query token a sequence: query [S, Hq, D] (rows may be strided), result [S, Hq, D]. Sequences of
    context 0 give 0. May be captured in a CUDA graph.
    """
    sequences, heads, dim = query.shape
    _, kv_heads, block_size, _ = cache.key.shape
    group = heads // kv_heads
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if sequences == 0:
        return output
    config = decode_config(dim, group, query.dtype, cache.key.dtype)
    parts = cdiv(group, config.rows)
    slots = max(1, multiprocessors(query.device) * config.programs // (kv_heads * parts))
    # Splits of `_split_length` tiles, one of which may be shorter in each sequence.
    most = sequences * max(1, cdiv(paged.longest_context, config.tile))
    items = min(config.waves * slots + sequences, most)
    partial = torch.empty((items, heads, dim), dtype=torch.float32, device=query.device)
    level = torch.empty((items, heads), dtype=torch.float32, device=query.device)
    window = attending.window or 0
    inner, outer = score_factors(attending, cache)
    division = {
        "TILE": config.tile,
        "SETTLED": config.settled,
        "WAVES": config.waves,
        "WINDOWED": attending.window is not None,
        "MANY": MANY,
    }
    dims = {"DIM": dim, "PADDED_DIM": next_power_of_2(dim)}
    _decode[(kv_heads * parts, items)](
        query,
        cache.key,
        cache.value,
        output,
        partial,
        level,
        paged.context_lens,
        paged.block_tables,
        *query.stride()[:2],
        *strides(cache),
        paged.block_tables.stride(0),
        heads,
        sequences,
        slots,
        window,
        inner,
        outer,
        float(cache.value_scale),
        GROUP=group,
        PARTS=parts,
        ROWS=config.rows,
        BLOCK=block_size,
        CAPPED=attending.softcap is not None,
        **dims,
        **division,
        **config.launch(),
    )
    _reduce[(sequences, heads)](
        output,
        partial,
        level,
        paged.context_lens,
        heads,
        sequences,
        slots,
        window,
        AT_ONCE=AT_ONCE,
        **dims,
        **division,
        **launch(warps=4, stages=2),
    )
    return output


@triton.jit
def _visible_tiles(lengths, window, TILE: tl.constexpr, WINDOWED: tl.constexpr):
    """The first tile that the last token sees, and how many from there."""
    first = lengths * 0
    if WINDOWED:
        first = tl.maximum(lengths - window, 0) // TILE
    return first, tl.cdiv(lengths, TILE) - first


@triton.jit
def _splits(
    context_lens,
    start,
    sequences,
    length,
    window,
    TILE: tl.constexpr,
    WINDOWED: tl.constexpr,
    MANY: tl.constexpr,
):
    """For MANY sequences from `start` on: their numbers, and how many splits each is divided into."""
    rows = start + tl.arange(0, MANY)
    lengths = tl.load(context_lens + rows, mask=rows < sequences, other=0)
    _, tiles = _visible_tiles(lengths, window, TILE, WINDOWED)
    return rows, tl.cdiv(tiles, length)


@triton.jit
def _split_length(
    context_lens,
    sequences,
    slots,
    window,
    TILE: tl.constexpr,
    SETTLED: tl.constexpr,
    WAVES: tl.constexpr,
    WINDOWED: tl.constexpr,
    MANY: tl.constexpr,
):
    """Tiles of a split: such that the splits of one KV head fill its slots a whole number of times, once if little is
    to do, WAVES times at most, and about SETTLED tiles each in between."""
    tiles = 0
    for start in range(0, sequences, MANY):
        _, count = _splits(context_lens, start, sequences, 1, window, TILE, WINDOWED, MANY)
        tiles += tl.sum(count)
    waves = tl.minimum(tl.maximum((tiles + slots * (SETTLED // 2)) // (slots * SETTLED), 1), WAVES)
    return tl.maximum(tl.cdiv(tiles, slots * waves), 1)


@triton.jit(
    do_not_specialize=["table_row", "heads", "sequences", "slots", "window"],
    do_not_specialize_on_alignment=["context_lens", "tables"],
)
def _decode(
    query,
    key,
    value,
    output,
    partial,
    level,
    context_lens,
    tables,
    query_row,
    query_head,
    block_stride,
    head_stride,
    token_stride,
    table_row,
    heads,
    sequences,
    slots,
    window,
    inner,
    outer,
    value_scale,
    GROUP: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CAPPED: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    TILE: tl.constexpr,
    SETTLED: tl.constexpr,
    WAVES: tl.constexpr,
    WINDOWED: tl.constexpr,
    MANY: tl.constexpr,
):
    """One split of one sequence, for the query heads of one KV head (or a part of them)."""
    item = tl.program_id(1)
    length = _split_length(context_lens, sequences, slots, window, TILE, SETTLED, WAVES, WINDOWED, MANY)
    sequence, before, items = 0, 0, 0
    for start in range(0, sequences, MANY):
        rows, splits = _splits(context_lens, start, sequences, length, window, TILE, WINDOWED, MANY)
        passed = (items + tl.cumsum(splits, 0) <= item) & (rows < sequences)
        sequence += tl.sum(passed.to(tl.int32))
        before += tl.sum(tl.where(passed, splits, 0))
        items += tl.sum(splits)
    if item >= items:
        return

    context = tl.load(context_lens + sequence)
    first, tiles = _visible_tiles(context, window, TILE, WINDOWED)
    splits = tl.cdiv(tiles, length)
    even = tl.cdiv(tiles, splits)
    first_tile = first + (item - before) * even
    last_tile = tl.minimum(first_tile + even, first + tiles)

    kv_head = tl.program_id(0) // PARTS
    in_group = (tl.program_id(0) % PARTS) * ROWS + tl.arange(0, ROWS)
    head = kv_head * GROUP + in_group
    dims = tl.arange(0, PADDED_DIM)
    mine = (in_group < GROUP)[:, None] & (dims < DIM)[None, :]
    row = tl.cast(sequence, tl.int64)
    query_at = query + row * query_row + head[:, None] * query_head + dims[None, :]
    accumulated, highest, total = walk(
        first_tile,
        last_tile,
        tl.load(query_at, mask=mine, other=0.0),
        tl.full([ROWS], 0, tl.int32) + (context - 1),
        context,
        tl.zeros([ROWS, PADDED_DIM], tl.float32),
        tl.full([ROWS], float("-inf"), tl.float32),
        tl.zeros([ROWS], tl.float32),
        key + kv_head.to(tl.int64) * head_stride,
        value + kv_head.to(tl.int64) * head_stride,
        tables + row * table_row,
        block_stride,
        token_stride,
        window,
        inner,
        outer,
        DIM,
        PADDED_DIM,
        BLOCK,
        TILE,
        True,
        WINDOWED,
        CAPPED,
    )
    attended = accumulated * (value_scale / total)[:, None]
    if splits == 1:
        out = output + (row * heads + head[:, None]) * DIM + dims[None, :]
        tl.store(out, attended.to(output.dtype.element_ty), mask=mine)
    else:
        place = item.to(tl.int64) * heads + head
        tl.store(partial + place[:, None] * DIM + dims[None, :], attended, mask=mine)
        tl.store(level + place, highest + tl.log2(total), mask=in_group < GROUP)


@triton.jit(
    do_not_specialize=["heads", "sequences", "slots", "window"], do_not_specialize_on_alignment=["context_lens"]
)
def _reduce(
    output,
    partial,
    level,
    context_lens,
    heads,
    sequences,
    slots,
    window,
    AT_ONCE: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    TILE: tl.constexpr,
    SETTLED: tl.constexpr,
    WAVES: tl.constexpr,
    WINDOWED: tl.constexpr,
    MANY: tl.constexpr,
):
    """Brings the splits of one sequence and query head together. One split wrote the output itself; none gives 0."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    length = _split_length(context_lens, sequences, slots, window, TILE, SETTLED, WAVES, WINDOWED, MANY)
    before = 0
    for start in range(0, sequence, MANY):
        rows, splits = _splits(context_lens, start, sequences, length, window, TILE, WINDOWED, MANY)
        before += tl.sum(tl.where(rows < sequence, splits, 0))
    _, tiles = _visible_tiles(tl.load(context_lens + sequence), window, TILE, WINDOWED)
    splits = tl.cdiv(tiles, length)
    if splits == 1:
        return

    dims = tl.arange(0, PADDED_DIM)
    gathered = tl.zeros([PADDED_DIM], tl.float32)
    highest = float("-inf")
    total = 0.0
    for start in range(0, splits, AT_ONCE):
        these = start + tl.arange(0, AT_ONCE)
        place = (before + these).to(tl.int64) * heads + head
        levels = tl.load(level + place, mask=these < splits, other=float("-inf"))
        parts = tl.load(
            partial + place[:, None] * DIM + dims[None, :],
            mask=(these < splits)[:, None] & (dims < DIM)[None, :],
            other=0.0,
        )
        risen = tl.maximum(highest, tl.max(levels, 0))
        weights = tl.exp2(levels - risen)
        fading = tl.exp2(highest - risen)
        gathered = gathered * fading + tl.sum(weights[:, None] * parts, 0)
        total = total * fading + tl.sum(weights, 0)
        highest = risen
    result = gathered / tl.where(splits == 0, 1.0, total)
    out = output + (sequence.to(tl.int64) * heads + head) * DIM + dims
    tl.store(out, result.to(output.dtype.element_ty), mask=dims < DIM)
