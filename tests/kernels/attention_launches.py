"""Launches of the attention kernels in every configuration, for `compile_check`: shapes decide what is compiled, so the
tensors are small and hold nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from kernels.ops import Attending, KvCache, Paged
from kernels.paged_decode import paged_decode
from kernels.paged_prefill import paged_prefill

BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn


def launches() -> Iterator[tuple[str, Callable[[], object]]]:
    for dim in (64, 80, 96, 128, 192, 256):
        yield from both(f"bf16 d{dim}", dim=dim)
    yield from both("fp16 d128", dtype=FP16)
    yield from both("bf16 d128 blocks of 64", block_size=64)
    yield from both("bf16 d128 window", window=1024)
    yield from both("bf16 d128 softcap", softcap=30.0)
    yield from both("bf16 d256 window softcap", dim=256, window=1024, softcap=50.0)
    for dim in (64, 128, 256):
        yield from both(f"fp8 d{dim}", dim=dim, cached=FP8)
        yield from both(f"fp32 d{dim}", dim=dim, dtype=FP32)
    for group in (1, 5, 8, 24, 71):
        yield from both(f"bf16 d128 group {group}", group=group)


def both(
    name: str,
    *,
    dim: int = 128,
    group: int = 4,
    block_size: int = 16,
    dtype: torch.dtype = BF16,
    cached: torch.dtype | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Iterator[tuple[str, Callable[[], object]]]:
    kv_heads = 2
    cache = torch.empty((2, kv_heads, block_size, dim), dtype=cached or dtype)
    query = torch.empty((1, kv_heads * group, dim), dtype=dtype)
    lengths = torch.ones(1, dtype=torch.int32)
    paged = Paged(torch.tensor([0, 1], dtype=torch.int32), lengths, torch.zeros((1, 16), dtype=torch.int32), 1, 16)
    attending = Attending(dim**-0.5, window, softcap)
    yield f"decode {name}", partial(paged_decode, query, KvCache(cache, cache), paged, attending)
    yield f"prefill {name}", partial(paged_prefill, query, KvCache(cache, cache), paged, attending)


def of_one_model() -> Iterator[tuple[str, Callable[[], object]]]:
    """Llama-3.1-8B's shape at steps that differ in all that steps differ in: sequences, lengths, widths, alignment."""
    numbers = torch.ones(200, dtype=torch.int32)
    cache = KvCache(*torch.empty((2, 2, 8, 16, 128), dtype=BF16))
    for name, sequences, width, skipped in (("one", 1, 16, 0), ("two", 2, 3, 4), ("many", 16, 1, 3)):
        paged = Paged(
            query_starts=numbers[skipped : skipped + sequences + 1],
            context_lens=numbers[skipped + 1 : skipped + sequences + 1],
            block_tables=numbers[skipped : skipped + sequences * width].view(sequences, width),
            longest_query=sequences,
            longest_context=64 * width,
        )
        query = torch.empty((sequences + skipped, 48, 128), dtype=BF16)[skipped:, :32]
        yield f"decode {name}", partial(paged_decode, query, cache, paged, Attending(0.1))
        yield f"prefill {name}", partial(paged_prefill, query, cache, paged, Attending(0.1))
