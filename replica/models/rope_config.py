"""How positions turn into angles, as config.json says it.

Owns the kinds of rope scaling that are understood, and their defaults. Must never import torch: `rotary.py` computes
the angles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec

from replica.models.written import ModelError, Positive, PositiveFloat, Written


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """`kind`: default, linear, llama3 or yarn; the rest is what these kinds read.

    `attention_factor` multiplies cosines and sines. `original_positions`: those of the model before it was stretched.
    """

    kind: str
    theta: float
    factor: float = 1.0
    attention_factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


class _Scaling(msgspec.Struct, forbid_unknown_fields=True):
    """The object in config.json. Everything else that may stand there would change the angles, so it is refused."""

    rope_type: Any = None
    type: Any = None
    rope_theta: PositiveFloat | None = None
    partial_rotary_factor: float | None = None
    factor: PositiveFloat | None = None
    original_max_position_embeddings: Positive | None = None
    attention_factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    finetuned: Any = None  # says nothing of the angles


def read_rope(written: Written, default_theta: float) -> RopeConfig:
    """Raises ModelError for scaling that is unknown, or lacks what its kind needs."""
    raw = written.rope_scaling or written.rope_parameters or {}
    kind = raw.get("rope_type") or raw.get("type") or "default"
    if kind not in _KINDS:
        raise ModelError(f"the rope type {kind!r} is not supported; supported are {', '.join(_KINDS)}")
    try:
        scaling = msgspec.convert(raw, _Scaling)
    except msgspec.ValidationError as error:
        raise ModelError(f"rope scaling: {error}") from error
    if (scaling.partial_rotary_factor or written.partial_rotary_factor or 1.0) != 1.0:
        raise ModelError("partial_rotary_factor is not supported in this architecture")
    theta = scaling.rope_theta or written.rope_theta or default_theta
    return _KINDS[kind](theta, scaling, written)


def longest_position(rope: RopeConfig, written: Written) -> int:
    """Models disagree whether max_position_embeddings counts before or after stretching; linear ones say before."""
    if rope.kind == "linear":
        return int(written.max_position_embeddings * rope.factor)
    if rope.kind == "yarn":
        return max(written.max_position_embeddings, int(rope.original_positions * rope.factor))
    return written.max_position_embeddings


def _default(theta: float, _scaling: _Scaling, _written: Written) -> RopeConfig:
    """Dynamic scaling too: it changes nothing up to max_position_embeddings.

    Beyond, angles would hang on the length of the request, and no KV could be shared: it is served up to there.
    """
    return RopeConfig("default", theta)


def _linear(theta: float, scaling: _Scaling, _written: Written) -> RopeConfig:
    return RopeConfig("linear", theta, factor=_needed(scaling.factor, "factor"))


def _llama3(theta: float, scaling: _Scaling, written: Written) -> RopeConfig:
    return RopeConfig(
        "llama3",
        theta,
        factor=_needed(scaling.factor, "factor"),
        original_positions=_original(scaling, written),
        low_freq_factor=_needed(scaling.low_freq_factor, "low_freq_factor"),
        high_freq_factor=_needed(scaling.high_freq_factor, "high_freq_factor"),
    )


def _yarn(theta: float, scaling: _Scaling, written: Written) -> RopeConfig:
    original = _original(scaling, written)
    factor = scaling.factor or written.max_position_embeddings / original
    return RopeConfig(
        "yarn",
        theta,
        factor=factor,
        attention_factor=_yarn_attention(scaling, factor),
        original_positions=original,
        beta_fast=scaling.beta_fast or 32.0,
        beta_slow=scaling.beta_slow or 1.0,
        truncate=scaling.truncate,
    )


_KINDS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn, "dynamic": _default}


def _original(scaling: _Scaling, written: Written) -> int:
    return (
        written.original_max_position_embeddings
        or scaling.original_max_position_embeddings
        or written.max_position_embeddings
    )


def _needed(value: float | None, key: str) -> float:
    if value is None:
        raise ModelError(f"rope scaling: {key} is missing")
    return value


def _yarn_attention(scaling: _Scaling, factor: float) -> float:
    """0.1 ln(factor) + 1 (YaRN, eq. 22) unless the model says otherwise."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return scale(scaling.mscale) / scale(scaling.mscale_all_dim)
    return scale(1.0)
