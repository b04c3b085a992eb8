"""Angles are those of transformers, to the last bit, up to positions where rounding would tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from replica.models.config import ModelConfig
from replica.models.rotary import cos_sin
from tests.tiny_models import tiny_config

LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        LINEAR,
        LLAMA3,
        YARN,
        {**YARN, "beta_fast": 16, "beta_slow": 2, "truncate": False},
        {**YARN, "attention_factor": 0.7},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
        {**YARN, "factor": 1.0},
    ],
    ids=lambda rope: "-".join(str(value) for value in rope.values()),
)
def test_the_table_is_that_of_transformers(rope: dict[str, Any], tmp_path: Path) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    theirs = tiny_config("llama", head_dim=128, rope_parameters=rope, max_position_embeddings=131072)
    theirs.architectures = ["LlamaForCausalLM"]
    theirs.save_pretrained(tmp_path)
    ours = ModelConfig.read(tmp_path)
    assert ours.head_dim == 128
    positions = torch.tensor([[0, 1, 31, 4095, 8192, 30000, 100000, 131071]])
    cos, sin = LlamaRotaryEmbedding(theirs)(torch.empty(0), positions)
    table = cos_sin(ours.rope, 128, 131072, torch.device("cpu"))[positions[0]]
    assert table.dtype == torch.float32
    assert torch.equal(table, torch.cat((cos[0, :, :64], sin[0, :, :64]), dim=-1))
