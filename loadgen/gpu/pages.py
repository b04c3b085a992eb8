"""Paged KV filled with noise: what the attention kernels are measured on, and an oracle for what they return.

Owns the tensors. Physical blocks are given to the sequences in random order, as in a replica that has run for a while.
Must never time anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.ops import KvCache, Paged
from loadgen.gpu.rooflines import Heads

FP8 = torch.float8_e4m3fn
FP8_SCALE = 0.5  # a power of two, so that dequantised values are exact in bf16
FILL_ELEMENTS = 1 << 26
CHECKED_ROWS = 64


@dataclass(frozen=True, slots=True)
class Pages:
    """One call's queries, and the caches of as many layers as the call is repeated over; all share the block tables.

    `query`: [T, Hq, D], `lengths`: the tokens of each sequence, of which the last `query_len` are queries.
    """

    heads: Heads
    query: Tensor
    caches: tuple[KvCache, ...]
    paged: Paged
    lengths: tuple[int, ...]
    query_len: int

    @property
    def scale(self) -> float:
        return float(self.heads.dim**-0.5)

    def gathered(self, sequence: int, cache: KvCache) -> tuple[Tensor, Tensor]:
        """Keys and values of one sequence, contiguous and dequantised: [Hk, context, D] of the query's dtype."""
        length = self.lengths[sequence]
        blocks = self.paged.block_tables[sequence, : -(-length // cache.block_size)].long()
        key, value = (
            _taken(stored, blocks).transpose(0, 1).flatten(1, 2)[:, :length].to(self.query.dtype) * scale
            for stored, scale in ((cache.key, cache.key_scale), (cache.value, cache.value_scale))
        )
        return key, value


def _taken(stored: Tensor, blocks: Tensor) -> Tensor:
    if stored.dtype == FP8:  # torch indexes bytes, not FP8
        return stored.view(torch.uint8)[blocks].view(FP8)
    return stored[blocks]


def random_pages(
    heads: Heads,
    lengths: tuple[int, ...],
    *,
    query_len: int = 1,
    layers: int = 1,
    block_size: int = 16,
    kv_dtype: torch.dtype,
    dtype: torch.dtype,
    device: torch.device,
) -> Pages:
    """Sequences of `lengths` tokens in `layers` caches. Memory: as `gpu_rooflines.kv_bytes` says, a layer."""
    generator = torch.Generator(device).manual_seed(1)
    width = -(-max(lengths) // block_size)
    used = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(used), generator=generator, device=device).to(torch.int32)
    tables = torch.zeros(len(lengths), width, dtype=torch.int32, device=device)
    for row, part in zip(tables, torch.split(order, used), strict=True):
        row[: len(part)] = part
    shape = (sum(used), heads.kv, block_size, heads.dim)
    scale = FP8_SCALE if kv_dtype == FP8 else 1.0
    caches = tuple(
        KvCache(_noise(shape, kv_dtype, scale, generator), _noise(shape, kv_dtype, scale, generator), scale, scale)
        for _ in range(layers)
    )
    tokens = query_len * len(lengths)
    query = torch.randn(tokens, heads.query, heads.dim, dtype=dtype, device=device, generator=generator)
    paged = Paged(
        query_starts=torch.arange(0, tokens + 1, query_len, dtype=torch.int32, device=device),
        context_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
        block_tables=tables,
        longest_query=query_len,
        longest_context=max(lengths),
    )
    return Pages(heads, query, caches, paged, lengths, query_len)


def _noise(shape: tuple[int, int, int, int], dtype: torch.dtype, scale: float, generator: torch.Generator) -> Tensor:
    """Normal noise divided by `scale`, made part by part, so that a large FP8 cache needs no large copy in fp32."""
    made = torch.empty(shape, dtype=dtype, device=generator.device)
    rows = max(1, FILL_ELEMENTS // math.prod(shape[1:]))
    for part in torch.split(made, rows):
        part.copy_(torch.randn(part.shape, device=generator.device, generator=generator) / scale)
    return made


def relative_error(pages: Pages, output: Tensor) -> float:
    """‖output - exact‖ / ‖exact‖ over the last query tokens of the first and the last sequence, in fp32.

    `output`: [T, Hq, D] of the last cache. NaN when the output holds one.
    """
    wrong, size = 0.0, 0.0
    for sequence in {0, len(pages.lengths) - 1}:
        end = (sequence + 1) * pages.query_len
        begin = max(end - CHECKED_ROWS, end - pages.query_len)
        exact = _exact(pages, sequence, pages.query[begin:end])
        wrong += float((output[begin:end].float() - exact).square().sum())
        size += float(exact.square().sum())
    return math.sqrt(wrong / size)


def _exact(pages: Pages, sequence: int, query: Tensor) -> Tensor:
    """Attention of the sequence's last query tokens, all in fp32: [rows, Hq, D]."""
    key, value = (x.float() for x in pages.gathered(sequence, pages.caches[-1]))
    rows, context = query.shape[0], key.shape[1]
    # [Hk, G * rows, D]: the query heads of one KV head as further rows, so that its KV is not repeated for them.
    grouped = query.float().view(rows, pages.heads.kv, -1, pages.heads.dim).permute(1, 2, 0, 3).flatten(1, 2)
    scores = grouped @ key.transpose(-1, -2) * pages.scale
    position = torch.arange(context, device=key.device)
    hidden = (position[None, :] > position[context - rows :, None]).repeat(grouped.shape[1] // rows, 1)
    weighted = scores.masked_fill_(hidden, float("-inf")).softmax(-1) @ value
    return weighted.view(pages.heads.kv, -1, rows, pages.heads.dim).permute(2, 0, 1, 3).flatten(1, 2)
