"""config.json is understood as published, in old spelling and new, or refused in words that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replica.models.config import ModelConfig, ModelError, RopeConfig

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "vocab_size": 32000,
}
MIXTRAL = {
    **MISTRAL,
    "architectures": ["MixtralForCausalLM"],
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "rope_theta": 1000000.0,
    "sliding_window": None,
}
QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def read(directory: Path, config: dict[str, Any] | str, generation: dict[str, Any] | None = None) -> ModelConfig:
    text = config if isinstance(config, str) else json.dumps(config)
    (directory / "config.json").write_text(text, encoding="utf-8")
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return ModelConfig.read(directory)


def test_llama_is_read_as_published(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA)
    assert (config.layers, config.heads, config.kv_heads, config.head_dim) == (32, 32, 8, 128)
    assert config.rope == RopeConfig(
        "llama3", 500000.0, 8.0, original_positions=8192, low_freq_factor=1.0, high_freq_factor=4.0
    )
    flags = (config.qkv_bias, config.output_bias, config.mlp_bias, config.qk_norm, config.tied_embeddings)
    assert not any(flags)
    assert config.windows == (None,) * 32
    assert config.experts is None
    assert config.dtype == "bfloat16"
    assert config.eos_ids == (128001, 128008, 128009)
    assert config.max_position_embeddings == 131072
    assert config.kv_bytes_per_token(2) == 128 * 1024


def test_qwen2_has_biases_and_no_window_unless_it_is_used(tmp_path: Path) -> None:
    config = read(tmp_path, QWEN2)
    assert config.qkv_bias
    assert not config.output_bias
    assert config.tied_embeddings
    assert (config.head_dim, config.rope) == (64, RopeConfig("default", 1000000.0))
    assert config.windows == (None,) * 24
    used = read(tmp_path, {**QWEN2, "use_sliding_window": True})
    assert used.windows == (None,) * 21 + (32768,) * 3


def test_mistral_has_a_window_unless_it_says_null(tmp_path: Path) -> None:
    assert read(tmp_path, MISTRAL).windows == (4096,) * 32
    assert read(tmp_path, {**MISTRAL, "sliding_window": None}).windows == (None,) * 32


def test_experts_are_read_in_both_spellings(tmp_path: Path) -> None:
    mixtral = read(tmp_path, MIXTRAL).experts
    assert mixtral is not None
    assert (mixtral.count, mixtral.chosen, mixtral.intermediate_size, mixtral.renormalise) == (8, 2, 14336, True)
    qwen = read(tmp_path, {**QWEN3_MOE, "mlp_only_layers": [3], "decoder_sparse_step": 2}).experts
    assert qwen is not None
    assert (qwen.count, qwen.chosen, qwen.intermediate_size, qwen.renormalise) == (128, 8, 768, True)
    assert qwen.dense_layers == {3, *range(0, 48, 2)}
    renamed = {"num_local_experts" if key == "num_experts" else key: value for key, value in QWEN3_MOE.items()}
    assert read(tmp_path, renamed).experts == read(tmp_path, QWEN3_MOE).experts


def test_generation_config_says_what_ends_an_answer(tmp_path: Path) -> None:
    assert read(tmp_path, LLAMA, {"eos_token_id": 7}).eos_ids == (7,)
    assert read(tmp_path, LLAMA, {"temperature": 0.6}).eos_ids == (128001, 128008, 128009)
    assert read(tmp_path, {**LLAMA, "eos_token_id": None}, {}).eos_ids == ()


def test_old_and_new_spelling_of_rope_are_the_same(tmp_path: Path) -> None:
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    old = read(tmp_path, {**QWEN2, "rope_scaling": rope})
    new = {key: value for key, value in QWEN2.items() if key != "rope_theta"}
    assert read(tmp_path, {**new, "rope_parameters": {**rope, "rope_theta": 1000000.0}}) == old
    assert old.rope.attention_factor == pytest.approx(1.1386294)
    assert old.rope.original_positions == 32768


def test_scaling_makes_room_for_more_positions(tmp_path: Path) -> None:
    def longest(scaling: dict[str, Any], positions: int) -> int:
        return read(
            tmp_path, {**QWEN2, "max_position_embeddings": positions, "rope_scaling": scaling}
        ).max_position_embeddings

    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert longest(yarn, 32768) == 131072
    assert longest(yarn, 131072) == 131072
    assert longest({"type": "linear", "factor": 2.0}, 32768) == 65536
    # Served as far as its angles do not hang on the request's length.
    assert longest({"type": "dynamic", "factor": 2.0}, 32768) == 32768


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("not json", "is not JSON"),
        ("[]", "config.json: Expected `object`"),
        ("{}", "none named"),
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; supported are LlamaForCausalLM, Q"),
        ({"architectures": ["LlamaForCausalLM"]}, "missing required field `vocab_size`"),
        ({**LLAMA, "hidden_size": "4096"}, r"Expected `int`, got `str` - at `\$.hidden_size`"),
        ({**LLAMA, "num_hidden_layers": 0}, "num_hidden_layers"),
        ({**LLAMA, "hidden_act": "gelu"}, "activation 'gelu'.* supported is silu"),
        ({**LLAMA, "num_key_value_heads": 5}, "32 attention heads cannot share 5 KV heads"),
        ({**LLAMA, "head_dim": 127}, "must be even"),
        ({**LLAMA, "torch_dtype": "float8_e4m3fn"}, "supported are bfloat16, float16 and float32"),
        (
            {**LLAMA, "quantization_config": {"quant_method": "gptq"}},
            "quantised weights .*'gptq'.* use the model's bf16",
        ),
        (
            {**LLAMA, "quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"group_0": {}}}},
            "quantised weights",
        ),
        ({**LLAMA, "rope_scaling": {"rope_type": "longrope"}}, "'longrope' is not supported; supported are default, l"),
        ({**LLAMA, "rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ({**LLAMA, "rope_parameters": {"full_attention": {"rope_theta": 1.0}}, "rope_scaling": None}, "unknown field"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
        ({**MISTRAL, "layer_types": ["chunked_attention"] * 32}, "chunked_attention"),
        ({**MISTRAL, "layer_types": ["full_attention"]}, "for each of the 32 layers; it has 1"),
        ({**MIXTRAL, "num_experts_per_tok": 9}, "num_experts_per_tok is 9, but there are 8 experts"),
        ({**MIXTRAL, "num_local_experts": None}, "num_local_experts"),
        ({**QWEN3_MOE, "moe_intermediate_size": None}, "moe_intermediate_size is missing"),
    ],
)
def test_what_is_not_understood_is_refused(config: dict[str, Any] | str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words) as refused:
        read(tmp_path, config)
    assert str(tmp_path / "config.json") in str(refused.value)


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json does not exist; a model directory holds"):
        ModelConfig.read(tmp_path)


def test_scales_of_the_kv_cache_alone_are_no_quantised_weights(tmp_path: Path) -> None:
    scales = {"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": {"num_bits": 8}}
    assert read(tmp_path, {**LLAMA, "quantization_config": scales}).layers == 32
