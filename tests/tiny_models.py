"""Tiny random models as Hugging Face saves them, each family one: what the engine's tests serve and compare with.

Owns their shapes and how their weights are drawn: so that a model's greedy answer runs through a hundred different
tokens rather than a loop, hangs on all of its context, and has hardly any near ties. transformers is imported only when
a model is asked for, for that takes seconds.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from replica import tokenizer as bundled_tokenizer

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "mixtral", "qwen3_moe")

EOS = 2
"""<|im_end|> of the bundled tokenizer."""

_CONFIGS = {
    "llama": "LlamaConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "mistral": "MistralConfig",
    "mixtral": "MixtralConfig",
    "qwen3_moe": "Qwen3MoeConfig",
}
_SHAPE: dict[str, Any] = {
    "vocab_size": 3072,  # that of the bundled tokenizer
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
_OWN_SHAPE: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 32},
    "mistral": {"sliding_window": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "head_dim": 32,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
    },
}


def tiny_config(family: str, **changes: Any) -> Any:
    """The transformers configuration of a family's tiny model; `changes` are in transformers' words."""
    return getattr(_transformers(), _CONFIGS[family])(**{**_SHAPE, **_OWN_SHAPE.get(family, {}), **changes})


def write_tiny(
    directory: Path,
    family: str,
    *,
    seed: int = 0,
    shards: bool = False,
    tokenizer: bool = True,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Writes a random model as transformers' save_pretrained does, with the bundled tokenizer beside it.

    `shards`: in several files with an index. `changes`: those of `tiny_config`. Returns the directory.
    """
    model = _transformers().AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    _draw(model, torch.Generator().manual_seed(seed))
    model.to(dtype).save_pretrained(directory, max_shard_size="300KB" if shards else "1GB")
    if tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(bundled_tokenizer.directory() / name, directory / name)
    return directory


def hugging_face(directory: Path) -> Any:
    """The model of a directory, computed by transformers in fp32 on the CPU."""
    return _transformers().AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def _transformers() -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # typed in part only
    return transformers


@torch.no_grad()
def _draw(model: Any, generator: torch.Generator) -> None:
    """Peaked attention that outweighs the embeddings: the next token hangs on the whole context, not on the last one.

    Logits have a standard deviation of 2, and fp32 rounding moves them by some 5e-5 at most.
    """
    for name, weight in model.named_parameters():
        weight.normal_(generator=generator)
        if name.endswith("norm.weight"):
            weight.mul_(0.1).add_(1.0)
        elif name.endswith("bias") or "embed_tokens" in name:
            weight.mul_(0.3)
        else:
            weight.mul_(weight.shape[-1] ** -0.5)
        weight.mul_(next((gain for part, gain in _GAINS.items() if part in name), 1.0))
        if name == "model.norm.weight" and model.config.tie_word_embeddings:
            weight.mul_(2.0 / (0.3 * weight.shape[0] ** 0.5))


_GAINS = {
    "q_proj.weight": 2.0,
    "k_proj.weight": 2.0,
    "q_norm": 2.0,
    "k_norm": 2.0,
    "o_proj.weight": 3.0,
    "lm_head": 2.0,
}
