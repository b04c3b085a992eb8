"""Sequences whose KV lies in a paged cache, as hostile as the interface allows, for tests of attention.

Physical blocks are permuted; what nobody wrote is NaN; behind the blocks of a context the tables hold no block ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.ops import KvCache, Paged

# For tests of any shape: all that does not say how long the sequences are.
SHAPES: dict[str, st.SearchStrategy[Any]] = {
    "kv_heads": st.integers(1, 2),
    "group": st.integers(1, 7),
    "block_size": st.sampled_from([16, 32, 64, 128]),
    "dim": st.sampled_from([64, 72, 128]),
    "dtype": st.sampled_from([torch.float32, torch.float16]),
    "window": st.none() | st.integers(1, 300),
    "softcap": st.none() | st.floats(1, 50),
    "seed": st.integers(0, 100),
}
FEW = settings(
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # without shrinking, which takes minutes in the interpreter
    suppress_health_check=[HealthCheck.too_slow],
)
NO_BLOCK = 2**31 - 1
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Absolute and relative. The interpreter is exact; a GPU makes products of fp32 of three of TF32.
TOLERANCE = {
    torch.float32: (2e-6, 2e-5) if DEVICE == "cpu" else (2e-5, 1e-4),
    torch.float16: (1e-3, 2e-3),
    torch.bfloat16: (1.5e-2, 1e-2),
}


def assert_close(ours: Tensor, wanted: Tensor, softcap: float | None = None) -> None:
    """Under a softcap, scores are differences of numbers as large as it is, in powers of two: what rounding takes off
    those, weights are wrong by, and so are sums of values around 1."""
    absolute, relative = TOLERANCE[wanted.dtype]
    absolute += (softcap or 0.0) * math.log2(math.e) * torch.finfo(torch.float32).eps
    torch.testing.assert_close(ours, wanted, atol=absolute, rtol=relative)


@dataclass(frozen=True)
class Case:
    query: Tensor
    cache: KvCache
    paged: Paged
    keys: list[Tensor]  # of each sequence, contiguous: [context, Hk, D]
    values: list[Tensor]


def case(
    contexts: Sequence[int],
    queries: Sequence[int] | None = None,
    *,
    kv_heads: int = 1,
    group: int = 2,
    dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    cached: torch.dtype | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
    device: str = DEVICE,
    seed: int = 0,
    spare_blocks: int = 2,
) -> Case:
    """Sequences of these context lengths, with so many query tokens each (default 1)."""
    random = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device)

    queries = queries or [1] * len(contexts)
    wanted = [-(-length // block_size) for length in contexts]
    shape = (sum(wanted) + spare_blocks, kv_heads, block_size, dim)
    free = (1 + torch.randperm(shape[0] - 1, generator=random, device=device)).tolist()  # block 0 stays unwritten
    stored = [torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in "kv"]
    contents: list[list[Tensor]] = [[], []]
    tables = torch.full((len(contexts), max(wanted) + 2), NO_BLOCK, dtype=torch.int32, device=device)
    for row, length in enumerate(contexts):
        blocks = torch.tensor([free.pop() for _ in range(wanted[row])], dtype=torch.int64, device=device)
        tables[row, : len(blocks)] = blocks
        positions = torch.arange(length, device=device)
        for part in range(2):
            tokens = normal(length, kv_heads, dim).to(dtype)
            if cached is not None:
                stored_tokens = (tokens / scales[part]).to(cached)
                tokens = (stored_tokens.float() * scales[part]).to(dtype)
                stored[part][blocks[positions // block_size], :, positions % block_size] = stored_tokens.to(dtype)
            else:
                stored[part][blocks[positions // block_size], :, positions % block_size] = tokens
            contents[part].append(tokens)
    key, value = (x.to(cached or dtype) for x in stored)
    paged = Paged(
        query_starts=torch.tensor([0, *accumulate(queries)], dtype=torch.int32, device=device),
        context_lens=torch.tensor(contexts, dtype=torch.int32, device=device),
        block_tables=tables,
        longest_query=max(queries),
        longest_context=max(contexts),
    )
    query = normal(sum(queries), kv_heads * group, dim).to(dtype)
    return Case(query, KvCache(key, value, *scales), paged, *contents)
