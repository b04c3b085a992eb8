"""Loading a real model: what does not fit is refused with words, not with a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from radix.chat import ChatTokenizer
from replica import tokenizer as bundled
from replica.loading import load_backend
from replica.models.config import ModelError
from replica.settings import ModelSource, Settings
from tests.replica.scripted import bundled_tokenizer

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 3072,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
}


@pytest.mark.parametrize(
    ("changes", "blocks", "said"),
    [
        ({}, 10**11, "the 1600000000000 tokens of KV do not fit into the memory of cpu; lower --kv-tokens"),
        ({"intermediate_size": 10**12}, 8, "its weights do not fit into the memory of cpu"),
    ],
)
def test_what_no_memory_can_hold_is_refused(tmp_path: Path, changes: dict[str, int], blocks: int, said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | changes))
    source = ModelSource(tmp_path, device="cpu", load_format="dummy")
    with pytest.raises(ModelError, match=said):
        load_backend(Settings("r1", kv_blocks=blocks, source=source), source, bundled_tokenizer(), None)


def test_a_tokenizer_with_ids_beyond_the_model_is_refused(tmp_path: Path) -> None:
    """However few tokens it has: a single one of them in a prompt would fail a step, and everybody in it."""
    description = json.loads((bundled.directory() / "tokenizer.json").read_text())
    vocabulary = description["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.__getitem__)] = 5000
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    source = ModelSource(tmp_path, device="cpu", load_format="dummy")
    with pytest.raises(ModelError, match="token ids up to 5000, but the model knows 3072"):
        load_backend(Settings("r1", kv_blocks=8, source=source), source, ChatTokenizer.load(tmp_path), None)
