"""Attention over paged KV in plain torch: the oracle that the Triton kernels are tested against, and a CPU's own.

Owns `paged_decode` and `paged_prefill` of `ops.Ops`, on any device, computed in fp32. Sequences are decoded together as
far as their KV fits in a processor's cache, and memory stays bounded. It reads lengths back from the device, so it must
never be captured in a CUDA graph, and it must never import triton.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.ops import Attending, KvCache, Paged

# Elements of keys, or of values, that are gathered at once to decode; a sequence of more is gathered alone.
GATHERED = 1 << 18
# Scores that are held at once in a prefill, or those of one token.
SCORES = 1 << 22


def paged_decode(query: Tensor, cache: KvCache, paged: Paged, attending: Attending) -> Tensor:
    """Attention of one query token a sequence: query [S, Hq, D], result the same. Rows of context 0 give 0."""
    _, kv_heads, block_size, dim = cache.key.shape
    heads = query.unflatten(1, (kv_heads, -1)).float()
    output = torch.zeros_like(heads, memory_format=torch.contiguous_format)
    lengths = paged.context_lens.tolist()
    firsts = [_first_visible(length - 1, attending.window) // block_size for length in lengths]
    counts = [-(-length // block_size) - first for length, first in zip(lengths, firsts, strict=True)]
    for rows in _alike(counts, GATHERED // (kv_heads * block_size * dim)):
        some = torch.tensor(rows, device=query.device)
        first = torch.tensor([firsts[row] for row in rows], device=query.device)[:, None]
        steps = torch.arange(counts[rows[0]], device=query.device)
        ends = paged.context_lens[some, None]
        # What a shorter row has not got lies behind its context: any block will do, for it is hidden below.
        columns = torch.where((first + steps) * block_size < ends, first + steps, first)
        blocks = paged.block_tables[some[:, None], columns]
        positions = first * block_size + torch.arange(len(steps) * block_size, device=query.device)
        hidden = positions >= ends
        if attending.window is not None:
            hidden |= positions < ends - attending.window
        key, value = _gather(cache, blocks)
        value.masked_fill_(hidden[:, None, :, None], 0)
        output[some] = _attend(heads[some], key, value, hidden[:, None, None], attending)
    return output.flatten(1, 2).to(query.dtype)


def paged_prefill(query: Tensor, cache: KvCache, paged: Paged, attending: Attending) -> Tensor:
    """Attention of any number of query tokens a sequence: query [T, Hq, D], result the same. Tokens of a sequence of
    context 0, and those of none, give 0.
    """
    output = torch.zeros_like(query, memory_format=torch.contiguous_format)
    starts = paged.query_starts.tolist()
    for row, length in enumerate(paged.context_lens.tolist()):
        start, end = starts[row], starts[row + 1]
        if length and start < end:
            output[start:end] = _prefill_one(query[start:end], cache, paged.block_tables[row], length, attending)
    return output


def _prefill_one(query: Tensor, cache: KvCache, table: Tensor, length: int, attending: Attending) -> Tensor:
    """One sequence: query [q, Hq, D], its last q tokens."""
    _, kv_heads, block_size, _ = cache.key.shape
    tokens, group = query.shape[0], query.shape[1] // kv_heads
    before = length - tokens
    first_block = _first_visible(before, attending.window) // block_size
    offset = first_block * block_size  # the position of what is gathered first
    key, value = (x[0] for x in _gather(cache, table[None, first_block : -(-length // block_size)]))
    rows = query.unflatten(1, (kv_heads, group)).permute(1, 0, 2, 3).float()  # [Hk, q, G, D]
    output = torch.empty_like(rows)
    step = max(1, SCORES // (kv_heads * group * key.shape[1]))
    for start in range(0, tokens, step):
        end = min(tokens, start + step)
        low = _first_visible(before + start, attending.window) - offset
        high = before + end - offset
        own = torch.arange(before + start, before + end, device=query.device)[:, None]
        seen = torch.arange(offset + low, offset + high, device=query.device)
        hidden = seen > own
        if attending.window is not None:
            hidden |= seen <= own - attending.window
        packed = rows[:, start:end].flatten(1, 2)
        hidden = hidden.repeat_interleave(group, dim=0)
        attended = _attend(packed, key[:, low:high], value[:, low:high], hidden, attending)
        output[:, start:end] = attended.unflatten(1, (-1, group))
    return output.permute(1, 0, 2, 3).flatten(1, 2).to(query.dtype)


def _attend(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, attending: Attending) -> Tensor:
    """query [..., R, D], key and value [..., L, D], hidden: bool, broadcast to [..., R, L]; no row hides all."""
    scores = (query @ key.transpose(-1, -2)).mul_(attending.scale)
    if attending.softcap is not None:
        scores.div_(attending.softcap).tanh_().mul_(attending.softcap)
    scores.masked_fill_(hidden, -torch.inf)
    attended: Tensor = scores.softmax(-1) @ value
    return attended


def _gather(cache: KvCache, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [n, Hk, blocks * block_size, D] in fp32 of `blocks`, [n, blocks]."""

    def gather(paged: Tensor, scale: float) -> Tensor:
        if paged.dtype == torch.float8_e4m3fn:  # bytes, for not every device gathers this type
            picked = paged.view(torch.uint8).index_select(0, blocks.flatten()).view(paged.dtype)
        else:
            picked = paged.index_select(0, blocks.flatten())
        wide: Tensor = picked.unflatten(0, blocks.shape).transpose(1, 2).flatten(2, 3).float()
        return wide if scale == 1.0 else wide * scale

    return gather(cache.key, cache.key_scale), gather(cache.value, cache.value_scale)


def _first_visible(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position - window + 1)


def _alike(counts: list[int], most: int) -> Iterator[list[int]]:
    """Rows in groups that waste little when padded to their longest, which comes first: none is less than half as long,
    and a group has at most `most` blocks or one row. Rows of nothing are left out.
    """
    group: list[int] = []
    for row in sorted((row for row, count in enumerate(counts) if count > 0), key=lambda row: -counts[row]):
        if group and (counts[row] * 2 < counts[group[0]] or counts[group[0]] * (len(group) + 1) > most):
            yield group
            group = []
        group.append(row)
    if group:
        yield group
