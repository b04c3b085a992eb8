"""What the attention kernels are measured beside: torch's own attention.

Owns the calls. SDPA (the flash and the cuDNN backend) reads contiguous KV, so its figures are an upper bound: no pages
to follow. FlexAttention reads pages of its own size through a mask. Must never be used to serve.

A peer is made from Pages and returns a function that computes the whole call once, over every layer. Making or calling
it raises whatever torch raises where it cannot do this.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from loadgen.gpu.pages import Pages

FLEX_PAGE = 128

Work = Callable[[], Tensor]


class Unsuited(ValueError):
    """The peer has no way to compute this call; the message says why."""


def flash(pages: Pages) -> Work:
    """SDPA's flash backend."""
    return _sdpa(pages, SDPBackend.FLASH_ATTENTION)


def cudnn(pages: Pages) -> Work:
    """SDPA's cuDNN backend."""
    if 1 < pages.query_len < pages.lengths[0]:
        raise Unsuited("no causal mask aligned to the lower right")
    return _sdpa(pages, SDPBackend.CUDNN_ATTENTION)


def _sdpa(pages: Pages, backend: SDPBackend) -> Work:
    layers = [_contiguous(pages, layer) for layer in range(len(pages.caches))]
    if pages.query_len == 1:
        # The query heads of one KV head stand where query tokens do: every backend then shares their KV.
        query = pages.query.view(len(pages.lengths), pages.heads.kv, -1, pages.heads.dim)
        mask: dict[str, Any] = {}
    else:
        query = _per_sequence(pages)
        group = pages.heads.query // pages.heads.kv
        layers = [(k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)) for k, v in layers]
        mask = {"is_causal": True} if pages.query_len == pages.lengths[0] else {"attn_mask": _lower_right(pages)}

    def work() -> Tensor:
        with sdpa_kernel(backend):
            for key, value in layers:
                out = F.scaled_dot_product_attention(query, key, value, scale=pages.scale, **mask)
        return out.flatten(1, 2) if pages.query_len == 1 else _as_tokens(out)

    return work


def _lower_right(pages: Pages) -> Tensor:
    from torch.nn.attention.bias import causal_lower_right  # it loads a compiler, which takes seconds

    return causal_lower_right(pages.query_len, pages.lengths[0])


def flex(pages: Pages) -> Work:
    """FlexAttention over pages of FLEX_PAGE tokens in random order, compiled."""
    if pages.lengths[0] % FLEX_PAGE or (pages.query_len > 1 and pages.query_len % FLEX_PAGE):
        raise Unsuited(f"measured for multiples of {FLEX_PAGE} tokens only")
    batch, blocks = len(pages.lengths), pages.lengths[0] // FLEX_PAGE
    table = torch.randperm(batch * blocks, device=pages.query.device).view(batch, blocks)
    layers = [tuple(_flex_cache(x, table) for x in _contiguous(pages, layer)) for layer in range(len(pages.caches))]
    mask = paged_mask(table, pages.query_len)
    compute = partial(_compiled_flex(), block_mask=mask, scale=pages.scale, enable_gqa=True)
    query = _per_sequence(pages)

    def work() -> Tensor:
        for key, value in layers:
            out: Tensor = compute(query, key, value)
        return _as_tokens(out)

    return work


def _compiled_flex() -> Any:
    # Few kernels are compiled, so no pool of compilers; and an earlier shape must not count against this one.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch.compiler.reset()
    return torch.compile(flex_attention, dynamic=False)


def _flex_cache(x: Tensor, table: Tensor) -> Tensor:
    """[B, Hk, context, D] into pages: [1, Hk, pages * FLEX_PAGE, D], sequence b's page i at table[b, i]."""
    batch, heads, _, dim = x.shape
    pages = x.view(batch, heads, -1, FLEX_PAGE, dim).permute(1, 0, 2, 3, 4).flatten(1, 2)
    placed = torch.empty_like(pages)
    placed[:, table.flatten()] = pages
    return placed.flatten(1, 2)[None]


def paged_mask(table: Tensor, query_len: int) -> BlockMask:
    """The causal mask of each sequence's last `query_len` tokens, in the physical blocks of `table` [B, blocks].

    The last block that a block of queries sees is masked token by token; those before it are seen whole.
    """
    batch, blocks = table.shape
    rows = max(1, query_len // FLEX_PAGE)
    before = blocks - rows  # blocks that every query token sees
    total = batch * blocks
    logical = torch.full((batch, total), -1, dtype=torch.int32, device=table.device)
    logical.scatter_(1, table, torch.arange(blocks, dtype=torch.int32, device=table.device).expand(batch, -1))
    context = blocks * FLEX_PAGE

    def seen(b: Tensor, h: Tensor, q: Tensor, physical: Tensor) -> Tensor:
        block = logical[b, physical // FLEX_PAGE]
        token = block * FLEX_PAGE + physical % FLEX_PAGE
        return (block >= 0) & (token <= q + context - query_len)

    row = torch.arange(rows, device=table.device)
    whole = (row + before).to(torch.int32).expand(batch, 1, rows)
    indices = torch.zeros(batch, 1, rows, total, dtype=torch.int32, device=table.device)
    indices[..., :blocks] = table[:, None, None, :]
    masked = torch.zeros_like(indices)
    masked[..., 0] = table[:, None, before + row]
    return BlockMask.from_kv_blocks(
        torch.ones_like(whole),
        masked,
        whole.contiguous(),
        indices,
        BLOCK_SIZE=(FLEX_PAGE, FLEX_PAGE),
        mask_mod=seen,
        seq_lengths=(query_len, total * FLEX_PAGE),
    )


def _contiguous(pages: Pages, layer: int) -> tuple[Tensor, Tensor]:
    """[B, Hk, context, D] of a layer; the sequences must be of one length."""
    if len(set(pages.lengths)) > 1:
        raise Unsuited("the sequences have different lengths")
    shape = (len(pages.lengths), pages.heads.kv, pages.lengths[0], pages.heads.dim)
    key, value = (torch.empty(shape, dtype=pages.query.dtype, device=pages.query.device) for _ in range(2))
    for sequence in range(len(pages.lengths)):
        key[sequence], value[sequence] = pages.gathered(sequence, pages.caches[layer])
    return key, value


def _per_sequence(pages: Pages) -> Tensor:
    """The queries as [B, Hq, query_len, D]."""
    return pages.query.view(len(pages.lengths), -1, *pages.query.shape[1:]).transpose(1, 2)


def _as_tokens(out: Tensor) -> Tensor:
    return out.transpose(1, 2).flatten(0, 1)
