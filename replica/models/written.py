"""config.json in its own words: the keys that matter, with the types they must have.

Owns what is read of a model directory's JSON files, and the refusal of what is absent, not JSON, or of the wrong type.
Must never interpret: what the keys mean is `config.py`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0.0)]
Anything = TypeVar("Anything")


class ModelError(ValueError):
    """The model directory cannot be served; the message says why and what to do."""


class Named(msgspec.Struct):
    """What must be known before the other keys can be asked for."""

    architectures: list[str] | None = None


class Written(msgspec.Struct):
    """The keys of config.json, of all families."""

    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    max_position_embeddings: Positive
    rms_norm_eps: float
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    attn_logit_softcapping: PositiveFloat | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    eos_token_id: int | list[int] | None = None
    quantization_config: dict[str, Any] | None = None
    # Windows
    use_sliding_window: bool = False
    sliding_window: Positive | UnsetType | None = UNSET
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    # Rope: transformers 5 writes rope_parameters, older ones rope_theta and rope_scaling.
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_theta: PositiveFloat | None = None
    partial_rotary_factor: float | None = None
    original_max_position_embeddings: Positive | None = None
    # Experts
    num_local_experts: Positive | None = None
    num_experts: Positive | None = None
    num_experts_per_tok: Positive | None = None
    moe_intermediate_size: Positive | None = None
    norm_topk_prob: bool = False
    mlp_only_layers: list[int] | None = None
    decoder_sparse_step: Positive = 1


class Generation(msgspec.Struct):
    """What is read of generation_config.json here."""

    eos_token_id: int | list[int] | None = None


def read_json(path: Path, as_type: type[Anything]) -> Anything:
    """Raises ModelError, which names the file, when it is not JSON or not of that type; FileNotFoundError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=as_type)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise ModelError(f"{path}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
