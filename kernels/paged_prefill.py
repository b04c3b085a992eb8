"""Paged prefill attention: any number of query tokens a sequence, behind a prefix that is in the cache already.

Owns the division of that work: rows are the query tokens of one sequence times the query heads of one KV head, packed,
so that the tensor cores get full tiles of rows and each tile of KV is read once for all of them. Each program finds its
tile of rows from `query_starts` on the device; lengths make no new variant of the kernel. Must never ask the device for
anything from the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch_sizes import cdiv, next_power_of_2
from kernels.ops import Attending, KvCache, Paged
from kernels.tiles import score_factors, strides, walk
from kernels.tuning import is_roomy, prefill_config

# How many starts are read at a time when a program looks for its place among them.
MANY = 256


def paged_prefill(query: Tensor, cache: KvCache, paged: Paged, attending: Attending) -> Tensor:
    """Attention of any number of query tokens a sequence: query [T, Hq, D] (rows may be strided), result [T, Hq, D].
    Tokens of a sequence of context 0 give 0; what no sequence claims is not written.
    """
    tokens, heads, dim = query.shape
    sequences = paged.context_lens.shape[0]
    _, kv_heads, block_size, _ = cache.key.shape
    group = heads // kv_heads
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    config = prefill_config(dim, query.dtype, cache.key.dtype, is_roomy(query.device))
    # Each sequence has at most one tile that is not full.
    longest = cdiv(paged.longest_query * group, config.rows)
    items = min(tokens * group // config.rows + sequences, sequences * longest)
    if items == 0:
        return output
    inner, outer = score_factors(attending, cache)
    _prefill[(kv_heads, items)](
        query,
        cache.key,
        cache.value,
        output,
        paged.query_starts,
        paged.context_lens,
        paged.block_tables,
        *query.stride()[:2],
        *strides(cache),
        paged.block_tables.stride(0),
        heads,
        sequences,
        attending.window or 0,
        inner,
        outer,
        float(cache.value_scale),
        GROUP=group,
        ROWS=config.rows,
        BLOCK=block_size,
        TILE=config.tile,
        DIM=dim,
        PADDED_DIM=next_power_of_2(dim),
        WINDOWED=attending.window is not None,
        CAPPED=attending.softcap is not None,
        MANY=MANY,
        **config.launch(),
    )
    return output


@triton.jit(
    do_not_specialize=["table_row", "heads", "sequences", "window"],
    do_not_specialize_on_alignment=["query_starts", "context_lens", "tables"],
)
def _prefill(
    query,
    key,
    value,
    output,
    query_starts,
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
    window,
    inner,
    outer,
    value_scale,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    MANY: tl.constexpr,
):
    """ROWS packed rows of one sequence, for one KV head."""
    # The last rows of a sequence see most: they start first, so that no program begins a long one when others end.
    item = tl.num_programs(1) - 1 - tl.program_id(1)
    sequence, before, items = 0, 0, 0
    for start in range(0, sequences, MANY):
        rows = start + tl.arange(0, MANY)
        starts = tl.load(query_starts + rows, mask=rows < sequences, other=0)
        stops = tl.load(query_starts + rows + 1, mask=rows < sequences, other=0)
        tiles = tl.cdiv((stops - starts) * GROUP, ROWS)
        passed = (items + tl.cumsum(tiles, 0) <= item) & (rows < sequences)
        sequence += tl.sum(passed.to(tl.int32))
        before += tl.sum(tl.where(passed, tiles, 0))
        items += tl.sum(tiles)
    if item >= items:
        return

    query_start = tl.load(query_starts + sequence)
    tokens = tl.load(query_starts + sequence + 1) - query_start
    prior = tl.load(context_lens + sequence) - tokens
    first_row = (item - before) * ROWS
    row = first_row + tl.arange(0, ROWS)
    own = prior + row // GROUP
    lowest = prior + first_row // GROUP
    highest_own = prior + tl.minimum(first_row + ROWS - 1, tokens * GROUP - 1) // GROUP

    kv_head = tl.program_id(0)
    head = kv_head * GROUP + row % GROUP
    dims = tl.arange(0, PADDED_DIM)
    mine = (row < tokens * GROUP)[:, None] & (dims < DIM)[None, :]
    token = (query_start + row // GROUP).to(tl.int64)
    query_at = query + (token * query_row + head * query_head)[:, None] + dims[None, :]
    rows_query = tl.load(query_at, mask=mine, other=0.0)
    key += kv_head.to(tl.int64) * head_stride
    value += kv_head.to(tl.int64) * head_stride
    tables += tl.cast(sequence, tl.int64) * table_row

    end = highest_own + 1
    last_tile = tl.cdiv(tl.maximum(end, 0), TILE)
    # Tiles from `inside` to `edge` are seen whole by every row.
    edge = tl.maximum(lowest + 1, 0) // TILE
    accumulated = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    inside = 0
    if WINDOWED:
        outside = tl.maximum(lowest - window + 1, 0) // TILE
        inside = tl.minimum(tl.cdiv(tl.maximum(highest_own - window + 1, 0), TILE), last_tile)
        accumulated, highest, total = walk(
            outside, inside, rows_query, own, end, accumulated, highest, total,
            key, value, tables, block_stride, token_stride,
            window, inner, outer, DIM, PADDED_DIM, BLOCK, TILE, True, WINDOWED, CAPPED,
        )  # fmt: skip
    accumulated, highest, total = walk(
        inside, edge, rows_query, own, end, accumulated, highest, total,
        key, value, tables, block_stride, token_stride,
        window, inner, outer, DIM, PADDED_DIM, BLOCK, TILE, False, WINDOWED, CAPPED,
    )  # fmt: skip
    accumulated, highest, total = walk(
        tl.maximum(inside, edge), last_tile, rows_query, own, end, accumulated, highest, total,
        key, value, tables, block_stride, token_stride,
        window, inner, outer, DIM, PADDED_DIM, BLOCK, TILE, True, WINDOWED, CAPPED,
    )  # fmt: skip
    attended = accumulated * (value_scale / tl.where(total == 0, 1.0, total))[:, None]
    out = output + (token * heads + head)[:, None] * DIM + dims[None, :]
    tl.store(out, attended.to(output.dtype.element_ty), mask=mine)
