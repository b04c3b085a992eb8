"""The table of cosines and sines that queries and keys are rotated with.

Owns the angles of every kind of rope scaling, as Hugging Face computes them: in fp32, from inverse frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from replica.models.rope_config import RopeConfig


def cos_sin(rope: RopeConfig, head_dim: int, longest: int, device: torch.device) -> Tensor:
    """fp32 [longest, head_dim]: for each position the cosines of its head_dim / 2 angles, then their sines."""
    positions = torch.arange(longest, dtype=torch.float32, device=device)
    angles = positions[:, None] * inverse_frequencies(rope, head_dim).to(device)
    return torch.cat((angles.cos(), angles.sin()), dim=-1).mul_(rope.attention_factor)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Angle by position of each pair, fp32 [head_dim / 2].

    The order of operations is Hugging Face's: an angle is thousands of times its frequency, and so is its rounding.
    """
    powers = rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.kind == "linear":
        return 1.0 / powers / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, 1.0 / powers)
    if rope.kind == "yarn":
        return _yarn(rope, powers)
    return 1.0 / powers


def _llama3(rope: RopeConfig, plain: Tensor) -> Tensor:
    """Llama 3.1: waves longer than the original context / low_freq_factor are stretched, those shorter than it /
    high_freq_factor are kept, and between them one turns into the other.
    """
    lengths = 2 * math.pi / plain
    turns = rope.original_positions / lengths
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    mixed = (1 - kept) * plain / rope.factor + kept * plain
    short = lengths < rope.original_positions / rope.high_freq_factor
    long = lengths > rope.original_positions / rope.low_freq_factor
    return torch.where(long, plain / rope.factor, torch.where(short, plain, mixed))


def _yarn(rope: RopeConfig, powers: Tensor) -> Tensor:
    """YaRN (section 3.2): pairs that turn more than beta_fast times in the original context are kept, those that turn
    less than beta_slow times are stretched, with a linear ramp over the pairs between.
    """
    pairs = len(powers)

    def pair_that_turns(times: float) -> float:
        return 2 * pairs * math.log(rope.original_positions / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    ramp = (torch.arange(pairs, dtype=torch.float32) - low) / (high - low if high != low else 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return 1.0 / (rope.factor * powers) * (1 - kept) + 1.0 / powers * kept
