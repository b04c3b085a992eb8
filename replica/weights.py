"""Fills the decoder's parameters from a checkpoint, a tensor at a time, or with random values.

Owns the names that checkpoints give to weights, and which part of which parameter each of them fills. Nothing is held
twice. Must never begin to copy before the headers have shown that all is there, and fits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from replica.models.checkpoint import StoredTensor, read_tensors, stored_tensors
from replica.models.decoder import Attention, Decoder, Mlp
from replica.models.moe import SparseMlp
from replica.models.projection import Projection
from replica.models.written import ModelError

NAMES_SHOWN = 5
"""How many tensors an error names; it counts the rest."""

_COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")  # in old checkpoints
_KV_SCALE = re.compile(r"^model\.layers\.(\d+)\.self_attn\.(?:attn\.|[kv]_proj\.)?([kv])_scale$")

Place = tuple[str, Tensor]
"""The name of a tensor in a checkpoint, and the parameter, or the part of one, that it fills."""


@torch.inference_mode()
def load(model: Decoder, directory: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Loads a checkpoint of any floating dtype, converted to the model's, and FP8 KV scales if it has some.

    `progress` is told after each tensor how many bytes, of how many in all, are done. Raises ModelError when files or
    tensors are missing, broken, misshapen, quantised, or not of this architecture.
    """
    stored = {name: tensor for name, tensor in stored_tensors(directory).items() if not _is_ignored(model, name)}
    scales = {name: stored.pop(name) for name in list(stored) if _KV_SCALE.search(name)}
    places = dict(_places(model, _expert_names(stored)))
    _check(f"{directory}: this is not the {model.config.architecture} that config.json describes", stored, places)
    _load_kv_scales(model, scales)
    total, done = sum(tensor.bytes for tensor in stored.values()), 0
    for name, tensor in read_tensors(stored):
        places[name].copy_(tensor)
        done += stored[name].bytes
        if progress is not None:
            progress(done, total)


@torch.inference_mode()
def fill_dummy(model: Decoder, seed: int = 0) -> None:
    """Random weights of a size that keeps activations near 1: for measurements, without a checkpoint."""
    generator = torch.Generator(model.embedding.device).manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=generator)
        else:
            weight.fill_(1.0 if name.endswith("norm") else 0.0)


def _is_ignored(model: Decoder, name: str) -> bool:
    tied_head = model.config.tied_embeddings and name == "lm_head.weight"  # some save it all the same
    return tied_head or _COMPUTED.search(name) is not None


def _check(heading: str, stored: dict[str, StoredTensor], places: dict[str, Tensor]) -> None:
    problems = [
        *_named("missing", sorted(places.keys() - stored.keys())),
        *_named("unexpected", sorted(stored.keys() - places.keys())),
        *_named(
            "misshapen",
            [
                f"{name} {list(tensor.shape)}, not {list(places[name].shape)}"
                for name, tensor in stored.items()
                if name in places and tensor.shape != tuple(places[name].shape)
            ],
        ),
        *_named("quantised", [f"{name} ({tensor.dtype})" for name, tensor in stored.items() if not tensor.is_float]),
    ]
    if problems:
        raise ModelError(f"{heading}; {'; '.join(problems)}")


def _named(problem: str, tensors: list[str]) -> Iterator[str]:
    if tensors:
        more = f" and {len(tensors) - NAMES_SHOWN} more" if len(tensors) > NAMES_SHOWN else ""
        yield f"{problem}: {', '.join(tensors[:NAMES_SHOWN])}{more}"


def _load_kv_scales(model: Decoder, stored: dict[str, StoredTensor]) -> None:
    for name, tensor in read_tensors(stored):
        match = _KV_SCALE.search(name)
        assert match is not None
        layer, scale = int(match[1]), float(tensor) if tensor.numel() == 1 else 0.0
        if not 0.0 < scale < float("inf") or layer >= model.config.layers:
            raise ModelError(f"{stored[name].file}: {name} must be one positive number, for all heads of a layer")
        key, value = model.kv_scales[layer]
        model.kv_scales[layer] = (scale, value) if match[2] == "k" else (key, scale)


class _ExpertNames(NamedTuple):
    """How a checkpoint spells a layer with experts: as Mixtral, as everyone else, or all experts stacked in one."""

    mlp: str
    gate: str
    up: str
    down: str
    stacked: bool = False


def _expert_names(stored: dict[str, StoredTensor]) -> _ExpertNames:
    if any(".block_sparse_moe." in name for name in stored):
        return _ExpertNames("block_sparse_moe.", "w1", "w3", "w2")
    stacked = any(name.endswith(".experts.gate_up_proj") for name in stored)
    return _ExpertNames("mlp.", "gate_proj", "up_proj", "down_proj", stacked=stacked)


def _places(model: Decoder, names: _ExpertNames) -> Iterator[Place]:
    yield "model.embed_tokens.weight", model.embedding
    for index, layer in enumerate(model.layers):
        prefix = f"model.layers.{index}."
        yield prefix + "input_layernorm.weight", layer.input_norm
        yield from _attention(prefix + "self_attn.", layer.attention)
        yield prefix + "post_attention_layernorm.weight", layer.mlp_norm
        if isinstance(layer.mlp, Mlp):
            yield from _mlp(prefix + "mlp.", layer.mlp)
        else:
            yield from _experts(prefix + names.mlp, layer.mlp, names)
    yield "model.norm.weight", model.norm
    if not model.config.tied_embeddings:
        yield "lm_head.weight", model.head


def _attention(prefix: str, attention: Attention) -> Iterator[Place]:
    config = attention.config
    heads = {"q_proj": config.heads, "k_proj": config.kv_heads, "v_proj": config.kv_heads}
    yield from _split(prefix, attention.qkv, {name: count * config.head_dim for name, count in heads.items()})
    yield from _split(prefix, attention.output, {"o_proj": config.hidden_size})
    if attention.query_norm is not None and attention.key_norm is not None:
        yield prefix + "q_norm.weight", attention.query_norm
        yield prefix + "k_norm.weight", attention.key_norm


def _mlp(prefix: str, mlp: Mlp) -> Iterator[Place]:
    inner = mlp.down.weight.shape[1]
    yield from _split(prefix, mlp.gate_up, {"gate_proj": inner, "up_proj": inner})
    yield from _split(prefix, mlp.down, {"down_proj": mlp.down.weight.shape[0]})


def _split(prefix: str, fused: Projection, rows: dict[str, int]) -> Iterator[Place]:
    """The parts of a fused projection, each so many of its rows, one after the other."""
    start = 0
    for name, count in rows.items():
        yield f"{prefix}{name}.weight", fused.weight[start : start + count]
        if fused.bias is not None:
            yield f"{prefix}{name}.bias", fused.bias[start : start + count]
        start += count


def _experts(prefix: str, mlp: SparseMlp, names: _ExpertNames) -> Iterator[Place]:
    yield prefix + "gate.weight", mlp.router.weight
    if names.stacked:
        yield prefix + "experts.gate_up_proj", mlp.gate_up
        yield prefix + "experts.down_proj", mlp.down
        return
    inner = mlp.config.intermediate_size
    for expert in range(mlp.config.count):
        one = f"{prefix}experts.{expert}."
        yield f"{one}{names.gate}.weight", mlp.gate_up[expert, :inner]
        yield f"{one}{names.up}.weight", mlp.gate_up[expert, inner:]
        yield f"{one}{names.down}.weight", mlp.down[expert]
