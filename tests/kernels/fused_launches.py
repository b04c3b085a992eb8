"""Launches of the kernels beside attention, at shapes of real models: for compile_check.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from kernels.experts import experts
from kernels.fused import add_rms_norm, rms_norm, rope, silu_mul
from kernels.kv_store import store_kv
from kernels.nucleus import nucleus
from kernels.ops import KvCache
from kernels.sampling import sample

Case = tuple[str, Callable[[], object]]


def launches() -> Iterator[Case]:
    """Every kernel in every configuration: Llama-3.1-8B's shapes, other head widths, the widest hidden size."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for hidden in (4096, 16384):
            yield from _norms(hidden, dtype)
        for rotated in (128, 80):
            yield from _heads(rotated, dtype)
        yield f"silu_mul {dtype}", partial(silu_mul, torch.empty(2, 2 * 14336, dtype=dtype))
    for cached in (torch.bfloat16, torch.float8_e4m3fn):
        for width in (80, 128):
            yield from _store(width, cached)
    yield from _sample()
    for vocabulary in (32001, 128256, 262144):
        yield from _nucleus(vocabulary)
    for tokens in (1, 512, 1024, 8192):
        yield from _experts(tokens, torch.bfloat16)
    for tokens in (1, 512):
        yield from _experts(tokens, torch.float32)


def the_intricate() -> Iterator[Case]:
    """Those of which the interpreter shows least: FP8, random bits, tensor cores. Few, for compiling takes seconds."""
    yield from _store(128, torch.float8_e4m3fn)
    yield from _sample()
    yield from _nucleus(128256)
    yield from _experts(8192, torch.bfloat16)


def _norms(hidden: int, dtype: torch.dtype) -> Iterator[Case]:
    x = torch.empty(2, hidden, dtype=dtype)
    yield f"rms_norm {hidden} {dtype}", partial(rms_norm, x, x[0], 1e-5)
    yield f"add_rms_norm {hidden} {dtype}", partial(add_rms_norm, x, x, x[0], 1e-5)


def _heads(rotated: int, dtype: torch.dtype) -> Iterator[Case]:
    qkv = torch.empty(2, 32 + 8 + 8, 128, dtype=dtype)
    query, key = qkv[:, :32], qkv[:, 32:40]
    yield f"rms_norm of heads {dtype}", partial(rms_norm, query, qkv[0, 0], 1e-6)
    yield f"rope {rotated} {dtype}", partial(rope, query, key, _longs(2), torch.empty(16, rotated))


def _store(width: int, cached: torch.dtype) -> Iterator[Case]:
    new = torch.empty(2, 8, width, dtype=torch.bfloat16)
    both = torch.empty(2, 8, 16, width, dtype=cached)
    yield f"store_kv {width} {cached}", partial(store_kv, new, new, KvCache(both, both, 0.5, 0.25), _longs(2))


def _sample() -> Iterator[Case]:
    yield "sample", partial(sample, torch.empty(1, 128256), _longs(1), _longs(1))


def _nucleus(vocabulary: int) -> Iterator[Case]:
    yield f"nucleus {vocabulary}", partial(nucleus, torch.empty(2, vocabulary), torch.empty(2))


def _experts(tokens: int, dtype: torch.dtype) -> Iterator[Case]:
    count, hidden, width, k = 128, 64, 32, 8
    x, gate_up = torch.empty(tokens, hidden, dtype=dtype), torch.empty(count, 2 * width, hidden, dtype=dtype)
    down = torch.empty(count, hidden, width, dtype=dtype)
    chosen, weights = torch.empty(tokens, k, dtype=torch.int64), torch.empty(tokens, k)
    yield f"experts {tokens} {dtype}", partial(experts, x, gate_up, down, chosen, weights)


def _longs(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)
