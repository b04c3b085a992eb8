"""The operations in plain torch: the oracle that the Triton kernels are tested against, and what serves on a CPU.

Owns one plain implementation of every operation of `ops.Ops`, on any device. Must never import triton.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from kernels.ops import KvCache
from kernels.philox import gumbel, token_bits
from kernels.reference_attention import paged_decode, paged_prefill

__all__ = [
    "add_rms_norm",
    "experts",
    "nucleus",
    "paged_decode",
    "paged_prefill",
    "rms_norm",
    "rope",
    "sample",
    "silu_mul",
    "store_kv",
]

FP8_LIMIT = 448.0


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As Hugging Face rounds it: the normalised row is cast to the dtype of `x` before the weight multiplies it."""
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normalised.to(x.dtype) * weight.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    residual += x
    return rms_norm(residual, weight, eps)


def rope(query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    cosine, sine = cos_sin[positions][:, None, :].chunk(2, dim=-1)
    for heads in (query, key):
        half = cosine.shape[-1]
        left, right = heads[..., :half].float(), heads[..., half : 2 * half].float()
        rotated = torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)
        heads[..., : 2 * half] = rotated.to(heads.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (silu(gate) * up).to(gate_up.dtype)


def store_kv(key: Tensor, value: Tensor, cache: KvCache, slots: Tensor) -> None:
    rows = slots >= 0
    block, offset = slots[rows] // cache.block_size, slots[rows] % cache.block_size
    for x, stored, scale in ((key, cache.key, cache.key_scale), (value, cache.value, cache.value_scale)):
        _scatter(stored, block, offset, _quantised(x[rows], scale, stored.dtype))


def _quantised(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    if dtype != torch.float8_e4m3fn:
        return x.to(dtype)
    # By a tensor: by a number, torch would multiply with its reciprocal on CUDA, and round some values the other way.
    divisor = torch.full((), scale, device=x.device)
    return (x.float() / divisor).clamp(-FP8_LIMIT, FP8_LIMIT).to(dtype)


def _scatter(stored: Tensor, block: Tensor, offset: Tensor, rows: Tensor) -> None:
    if stored.dtype == torch.float8_e4m3fn:  # torch indexes bytes, not FP8
        stored, rows = stored.view(torch.uint8), rows.view(torch.uint8)
    stored[block, :, offset] = rows


def experts(x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros_like(x, dtype=torch.float32)
    for expert in chosen.unique().tolist():
        token, choice = torch.where(chosen == expert)
        out = silu_mul(x[token] @ gate_up[expert].T) @ down[expert].T
        total.index_add_(0, token, out.float() * weights[token, choice, None])
    return total.to(x.dtype)


def nucleus(logits: Tensor, mass: Tensor) -> Tensor:
    least = torch.full_like(mass, -torch.inf)
    (some,) = torch.where(mass < 1)
    best = logits[some].sort(dim=-1, descending=True).values
    shares = best.double().softmax(dim=-1)
    before = shares.cumsum(dim=-1) - shares
    kept = (before < mass[some, None]).sum(dim=-1, keepdim=True).clamp_min(1)
    return least.index_copy_(0, some, best.gather(1, kept - 1).squeeze(1))


def sample(logits: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    noise = gumbel(token_bits(seeds, positions, logits.shape[-1]))
    return (logits.float() + noise).argmax(dim=-1)
