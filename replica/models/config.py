"""What a model directory's config.json says, as one flat set of flags for all families.

Owns the supported architectures, how each spells what it is, and every refusal that config.json alone can settle. Must
never import torch, nor guess: what would change the arithmetic and is not understood is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UnsetType

from replica.models.rope_config import RopeConfig, longest_position, read_rope
from replica.models.written import Generation, ModelError, Named, Written, read_json

__all__ = ["ARCHITECTURES", "ExpertsConfig", "ModelConfig", "ModelError", "RopeConfig"]


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """`chosen` of `count` experts compute each token. `renormalise`: their weights are made to sum to 1.

    `dense_layers`: the layers without experts.
    """

    count: int
    chosen: int
    intermediate_size: int
    renormalise: bool
    dense_layers: frozenset[int]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """`windows`: for each layer, how many tokens it attends to, itself included; None: all.

    `max_position_embeddings`: positions that the model can take, its rope scaling included; beyond, it is undefined.
    `dtype`: bfloat16, float16 or float32, as the weights were saved. `eos_ids`: any of them ends an answer.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    softcap: float | None
    experts: ExpertsConfig | None
    dtype: str
    eos_ids: tuple[int, ...]

    @classmethod
    def read(cls, directory: Path) -> ModelConfig:
        """Raises ModelError when the directory's config.json is absent, broken, or of a model not supported."""
        path = directory / "config.json"
        try:
            named = read_json(path, Named).architectures or []
            architecture = next((name for name in named if name in _FAMILIES), None)
            if architecture is None:
                raise ModelError(
                    f"{path}: the architecture {', '.join(named) or '(none named)'} is not supported; "
                    f"supported are {', '.join(ARCHITECTURES)}"
                )
            written = read_json(path, Written)
        except FileNotFoundError as error:
            raise ModelError(
                f"{path} does not exist; a model directory holds config.json, *.safetensors and tokenizer.json"
            ) from error
        eos_ids = _generation_eos_ids(directory)
        try:
            return _config(architecture, written, eos_ids)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of one token's keys and values, all layers together."""
        return 2 * self.layers * self.kv_heads * self.head_dim * element_bytes


@dataclass(frozen=True, slots=True)
class _Family:
    """What an architecture's name says. A bias of None is for config.json to say (attention_bias, mlp_bias)."""

    qkv_bias: bool | None = False
    output_bias: bool | None = False
    mlp_bias: bool | None = False
    qk_norm: bool = False
    theta: float = 10_000.0
    head_dim: int | None = None  # where config.json is silent; None: hidden_size / heads
    windowed: bool = True
    window: int | None = 4096  # where config.json is silent
    window_if_used: bool = False  # only with use_sliding_window
    window_from_layer: bool = False  # only from layer max_window_layers on
    experts: Callable[[Written], ExpertsConfig] | None = None


def _config(architecture: str, written: Written, eos_ids: tuple[int, ...]) -> ModelConfig:
    family = _FAMILIES[architecture]
    _refuse_quantised(written.quantization_config)
    if written.hidden_act not in ("silu", "swish"):
        raise ModelError(f"the activation {written.hidden_act!r} (hidden_act) is not supported; supported is silu")
    kv_heads = written.num_key_value_heads or written.num_attention_heads
    if written.num_attention_heads % kv_heads:
        raise ModelError(f"{written.num_attention_heads} attention heads cannot share {kv_heads} KV heads evenly")
    head_dim = written.head_dim or family.head_dim or written.hidden_size // written.num_attention_heads
    if head_dim % 2:
        raise ModelError(f"a head dimension of {head_dim} cannot be rotated: it must be even")
    rope = read_rope(written, family.theta)
    return ModelConfig(
        architecture=architecture,
        vocab_size=written.vocab_size,
        hidden_size=written.hidden_size,
        layers=written.num_hidden_layers,
        heads=written.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=written.intermediate_size,
        norm_eps=written.rms_norm_eps,
        rope=rope,
        max_position_embeddings=longest_position(rope, written),
        tied_embeddings=written.tie_word_embeddings,
        qkv_bias=written.attention_bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=written.attention_bias if family.output_bias is None else family.output_bias,
        mlp_bias=written.mlp_bias if family.mlp_bias is None else family.mlp_bias,
        qk_norm=family.qk_norm,
        windows=_windows(family, written),
        softcap=written.attn_logit_softcapping,
        experts=family.experts(written) if family.experts else None,
        dtype=_dtype(written),
        eos_ids=eos_ids or _ids(written.eos_token_id),
    )


def _refuse_quantised(quantization: dict[str, Any] | None) -> None:
    """KV scales alone (compressed-tensors without any group of weights) are no reason to refuse."""
    if quantization is None:
        return
    method = quantization.get("quant_method", "unknown")
    if method != "compressed-tensors" or quantization.get("config_groups"):
        raise ModelError(
            f"quantised weights (quantization_config, quant_method {method!r}) are not supported; "
            "use the model's bf16 or fp16 checkpoint"
        )


def _dtype(written: Written) -> str:
    dtype = written.dtype or written.torch_dtype or "float32"
    if dtype not in ("bfloat16", "float16", "float32"):
        raise ModelError(f"the dtype {dtype!r} is not supported; supported are bfloat16, float16 and float32")
    return dtype


def _windows(family: _Family, written: Written) -> tuple[int | None, ...]:
    layers, types = written.num_hidden_layers, written.layer_types
    window = family.window if isinstance(written.sliding_window, UnsetType) else written.sliding_window
    if not family.windowed or (family.window_if_used and not written.use_sliding_window):
        window = None
    if types is None:
        first = written.max_window_layers if family.window_from_layer else 0
        return tuple(window if layer >= first else None for layer in range(layers))
    if set(types) - {"full_attention", "sliding_attention"} or len(types) != layers:
        raise ModelError(
            f"layer_types must say full_attention or sliding_attention for each of the {layers} layers; "
            f"it has {len(types)}: {', '.join(sorted(set(types)))}"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _mixtral_experts(written: Written) -> ExpertsConfig:
    count, chosen = _choice(written)
    return ExpertsConfig(count, chosen, written.intermediate_size, renormalise=True, dense_layers=frozenset())


def _qwen_experts(written: Written) -> ExpertsConfig:
    count, chosen = _choice(written)
    if written.moe_intermediate_size is None:
        raise ModelError("moe_intermediate_size is missing")
    dense = frozenset(
        layer
        for layer in range(written.num_hidden_layers)
        if layer in (written.mlp_only_layers or ()) or (layer + 1) % written.decoder_sparse_step
    )
    return ExpertsConfig(count, chosen, written.moe_intermediate_size, written.norm_topk_prob, dense)


def _choice(written: Written) -> tuple[int, int]:
    count, chosen = written.num_local_experts or written.num_experts, written.num_experts_per_tok
    if count is None or chosen is None:
        raise ModelError("num_local_experts (or num_experts) or num_experts_per_tok is missing")
    if chosen > count:
        raise ModelError(f"num_experts_per_tok is {chosen}, but there are {count} experts")
    return count, chosen


def _generation_eos_ids(directory: Path) -> tuple[int, ...]:
    """Those of generation_config.json, if it names any: they go before config.json's."""
    try:
        return _ids(read_json(directory / "generation_config.json", Generation).eos_token_id)
    except FileNotFoundError:
        return ()


def _ids(written: int | list[int] | None) -> tuple[int, ...]:
    if written is None:
        return ()
    return (written,) if isinstance(written, int) else tuple(written)


_FAMILIES = {
    "LlamaForCausalLM": _Family(qkv_bias=None, output_bias=None, mlp_bias=None, windowed=False),
    "Qwen2ForCausalLM": _Family(qkv_bias=True, window_if_used=True, window_from_layer=True),
    "Qwen3ForCausalLM": _Family(
        qkv_bias=None, output_bias=None, qk_norm=True, head_dim=128, window_if_used=True, window_from_layer=True
    ),
    "MistralForCausalLM": _Family(),
    "MixtralForCausalLM": _Family(theta=1_000_000.0, window=None, experts=_mixtral_experts),
    "Qwen3MoeForCausalLM": _Family(
        qkv_bias=None, output_bias=None, qk_norm=True, window_if_used=True, experts=_qwen_experts
    ),
}
ARCHITECTURES = tuple(_FAMILIES)
