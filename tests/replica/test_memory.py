"""As many KV blocks as there is memory for, and a clear refusal where that is too few."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from replica.memory import GIB, check_room, heaviest_step, host_budget, kv_block_bytes, kv_blocks, run_heaviest_step
from replica.model_runner import RunnerOptions
from replica.models.config import ModelConfig, ModelError
from replica.models.decoder import Decoder
from tests.replica.models.paged_model import load_decoder
from tests.tiny_models import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_decoder(write_tiny(tmp_path_factory.mktemp("llama"), "llama", tokenizer=False))


@pytest.fixture(scope="module")
def config(model: Decoder) -> ModelConfig:
    return model.config


def blocks(config: ModelConfig, budget: int, max_model_len: int, dtype: torch.dtype = torch.bfloat16) -> int:
    return kv_blocks(config, budget, block_size=16, kv_dtype=dtype, max_model_len=max_model_len)


def test_a_block_has_keys_and_values_of_all_layers(config: ModelConfig) -> None:
    elements = 2 * config.layers * config.kv_heads * config.head_dim * 16

    assert kv_block_bytes(config, block_size=16, kv_dtype=torch.float32) == 4 * elements
    assert kv_block_bytes(config, block_size=16, kv_dtype=torch.bfloat16) == 2 * elements
    assert kv_block_bytes(config, block_size=16, kv_dtype=torch.float8_e4m3fn) == elements


def test_as_many_blocks_as_fit_and_no_more(config: ModelConfig) -> None:
    one = kv_block_bytes(config, block_size=16, kv_dtype=torch.bfloat16)

    assert blocks(config, 10 * one, 160) == 10
    assert blocks(config, 11 * one - 1, 160) == 10
    assert blocks(config, 10 * one, 160, torch.float8_e4m3fn) == 20


@pytest.mark.parametrize("missing", [1, 10**15])
def test_too_little_memory_for_one_longest_sequence_is_refused_and_the_flags_named(
    config: ModelConfig, missing: int
) -> None:
    one = kv_block_bytes(config, block_size=16, kv_dtype=torch.bfloat16)

    with pytest.raises(ModelError, match=r"one sequence may have 160.*--max-model-len.*--gpu-memory-.*--kv-tokens"):
        blocks(config, 10 * one - missing, 160)


def test_a_given_number_of_blocks_is_checked_as_well() -> None:
    check_room(3, block_size=16, max_model_len=48)
    with pytest.raises(ModelError, match="room for 48 tokens of KV"):
        check_room(3, block_size=16, max_model_len=49)


def test_on_a_host_kv_takes_a_quarter_of_what_is_available_and_at_most_4_gib() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = 1024 * int(next(line for line in lines if line.startswith("MemTotal")).split()[1])

    assert 0 < host_budget() <= min(total // 4, 4 * GIB)


@pytest.mark.parametrize(("running", "batched", "longest"), [(3, 10, 64), (1, 7, 64), (2, 40, 16), (4, 4, 64)])
def test_the_heaviest_step_is_as_large_as_any_can_be(model: Decoder, running: int, batched: int, longest: int) -> None:
    options = RunnerOptions(
        max_running=running,
        max_batched_tokens=batched,
        max_model_len=longest,
        block_size=16,
        blocks=0,
        kv_dtype=torch.float32,
    )

    step = heaviest_step(options)

    assert step.tokens == min(batched, running * longest)
    assert len(step.slices) == step.samples == running
    assert max(part.count for part in step.slices) <= longest
    run_heaviest_step(model, options)
