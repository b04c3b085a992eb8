"""Every family computes what transformers computes, and says the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.replica.models.paged_model import PagedModel, load_decoder
from tests.tiny_models import FAMILIES, hugging_face, write_tiny

TOLERANCE = 1e-4
LENGTHS = (70, 1, 37)

LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 20}


def prompts(lengths: Sequence[int]) -> list[list[int]]:
    rng = Random(1)
    return [[rng.randrange(3, 3072) for _ in range(length)] for length in lengths]


def answer(paged: PagedModel, sequences: list[list[int]], tokens: int) -> list[Tensor]:
    """Prompts go in one prefill, then all decode greedily. Extends the sequences, and returns each one's logits."""
    logits = [[rows] for rows in paged.step(sequences)]
    for _ in range(tokens - 1):
        newest = [[int(rows[-1][-1].argmax())] for rows in logits]
        for rows, sequence, token, new in zip(logits, sequences, newest, paged.step(newest), strict=True):
            sequence.extend(token)
            rows.append(new)
    return [torch.cat(rows) for rows in logits]


@torch.inference_mode()
def check_parity(directory: Path, *, tokens: int) -> list[list[int]]:
    """If each token of an answer is the one that transformers likes best after those before it, then its own greedy
    answer is the same; so one pass of transformers over prompt and answer tells. Returns the answers.
    """
    sequences = prompts(LENGTHS)
    ours = answer(PagedModel(load_decoder(directory), len(LENGTHS), max(LENGTHS) + tokens), sequences, tokens)
    model = hugging_face(directory)
    for length, sequence, logits in zip(LENGTHS, sequences, ours, strict=True):
        theirs = model(torch.tensor([sequence])).logits[0]
        torch.testing.assert_close(logits, theirs, rtol=0.0, atol=TOLERANCE)
        assert theirs[length - 1 : -1].argmax(-1).tolist() == sequence[length:]
    return [sequence[length:] for length, sequence in zip(LENGTHS, sequences, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_two_hundred_greedy_tokens_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    answers = check_parity(write_tiny(tmp_path, family, tokenizer=False), tokens=201)
    assert all(len(set(tokens)) > 50 for tokens in answers), "a model that repeats itself shows little"


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param("llama", {"rope_parameters": LLAMA3}, id="llama3 scaling"),
        pytest.param("llama", {"rope_parameters": LINEAR}, id="linear scaling"),
        pytest.param("qwen2", {"rope_parameters": YARN}, id="yarn"),
        pytest.param("qwen3", {"rope_parameters": {**YARN, "attention_factor": 0.8}}, id="yarn with its own factor"),
        pytest.param("llama", {"tie_word_embeddings": True}, id="tied embeddings"),
        pytest.param("llama", {"attention_bias": True, "mlp_bias": True}, id="biases"),
        pytest.param("qwen3", {"attention_bias": True}, id="biases before the norms of queries and keys"),
        pytest.param("llama", {"head_dim": 32}, id="heads wider than the model"),
        pytest.param("mistral", {"num_key_value_heads": 1}, id="one KV head for all"),
        pytest.param("llama", {"num_key_value_heads": 4}, id="a KV head each"),
        pytest.param("qwen2", {**WINDOW, "max_window_layers": 1}, id="a window from layer 1 on"),
        pytest.param("qwen2", {"sliding_window": 20, "max_window_layers": 0}, id="a window that is not used"),
        pytest.param("qwen3", {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}, id="layer types"),
        pytest.param("qwen3_moe", WINDOW, id="experts and a window"),
        pytest.param("mixtral", {"sliding_window": 20}, id="Mixtral with a window"),
        pytest.param("mistral", {"sliding_window": None}, id="Mistral without a window"),
        pytest.param("qwen3_moe", {"norm_topk_prob": False}, id="weights of experts as they are"),
        pytest.param("qwen3_moe", {"mlp_only_layers": [0]}, id="a layer without experts"),
        pytest.param("qwen3_moe", {"decoder_sparse_step": 2}, id="experts in every second layer"),
        pytest.param("mistral", {"dtype": torch.bfloat16}, id="a bf16 checkpoint"),
        pytest.param("mixtral", {"shards": True}, id="several files"),
    ],
)
def test_every_flag_means_what_it_means_to_transformers(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    check_parity(write_tiny(tmp_path, family, tokenizer=False, **changes), tokens=8)


def test_transformers_own_generation_says_the_same(tmp_path: Path) -> None:
    directory = write_tiny(tmp_path, "qwen3", tokenizer=False)
    sequences = prompts((40,))
    theirs = hugging_face(directory).generate(
        torch.tensor(sequences), do_sample=False, max_new_tokens=50, eos_token_id=None, pad_token_id=0
    )
    answer(PagedModel(load_decoder(directory), 1, 100), sequences, 51)
    assert sequences == theirs.tolist()


@pytest.mark.parametrize("family", ["mistral", "qwen3_moe"])
def test_chunks_beside_decodes_compute_what_whole_prompts_do(family: str, tmp_path: Path) -> None:
    """Mistral's window is shorter than the prompts, and than what their later chunks look back on."""
    model = load_decoder(write_tiny(tmp_path, family, tokenizer=False))
    sequences = prompts((60, 45, 3))
    whole = PagedModel(model, 3, 64).step(sequences)
    paged = PagedModel(model, 3, 64)
    chunked: list[list[Tensor]] = [[], [], []]
    for counts in ((17, 0, 1), (17, 40, 1), (1, 5, 1), (25, 0, 0)):
        starts = tuple(paged.lengths)
        news = [tokens[start : start + count] for tokens, start, count in zip(sequences, starts, counts, strict=True)]
        for rows, logits in zip(chunked, paged.step(news), strict=True):
            rows.append(logits)
    assert paged.lengths == [60, 45, 3]
    for rows, wanted in zip(chunked, whole, strict=True):
        torch.testing.assert_close(torch.cat(rows), wanted, rtol=0.0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_much_the_same(dtype: torch.dtype, tmp_path: Path) -> None:
    directory = write_tiny(tmp_path, "qwen3", tokenizer=False)
    sequences = prompts((30,))
    full, half = (
        PagedModel(load_decoder(directory, dtype=dtype), 1, 30).step(sequences)[0] for dtype in (torch.float32, dtype)
    )
    assert half.dtype == torch.float32
    assert torch.corrcoef(torch.stack((full.flatten(), half.flatten())))[0, 1] > 0.99
