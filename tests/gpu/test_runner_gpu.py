"""The runner on a GPU: graphs, overlap and kernels make steps faster, and change no token."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from kernels import reference
from kernels.ops import Ops
from replica.memory import device_budget, kv_block_bytes, kv_blocks
from replica.model_runner import ModelRunner
from replica.models.config import ModelConfig
from replica.models.decoder import Decoder
from replica.request import Request
from replica.weights import load
from tests.replica.served import MIXED, Way, options, request, requests, run, words
from tests.tiny_models import write_tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

WAY = Way(block=16)


@pytest.fixture(scope="module", params=["llama", "qwen3_moe"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"), request.param, tokenizer=False, head_dim=64)


def decoder(directory: Path, dtype: torch.dtype, ops: Ops | None = None) -> Decoder:
    from kernels import triton_ops

    config = ModelConfig.read(directory)
    model = Decoder(config, ops or triton_ops, device=torch.device("cuda", 0), dtype=dtype)
    load(model, directory)
    return model


def five() -> list[Request]:
    """Of equal lengths: whatever overlaps, every step has the same requests, and so the same shapes."""
    return [request(words(40, seed), 40, sampling) for seed, sampling in enumerate(MIXED[:5])]


def answers(model: Decoder, asked: list[Request], **changes: object) -> list[list[int]]:
    run(model, asked, WAY, **{"kv_dtype": model.embedding.dtype, **changes})
    return [one.output for one in asked]


def test_graphs_and_overlap_change_no_token(directory: Path) -> None:
    """Compared with the same padded inputs, computed kernel by kernel: in bf16 other shapes may round otherwise."""
    model = decoder(directory, torch.bfloat16)

    plain = answers(model, five(), padded=True, graphs=False, overlap=False)

    assert answers(model, five(), graphs=True, overlap=False) == plain
    assert answers(model, five(), graphs=True, overlap=True) == plain
    assert answers(model, five(), padded=True, graphs=False, overlap=True) == plain


def test_an_fp8_cache_works_under_graphs(directory: Path) -> None:
    model = decoder(directory, torch.bfloat16)
    fp8 = {"kv_dtype": torch.float8_e4m3fn}

    plain = answers(model, five(), padded=True, graphs=False, overlap=False, **fp8)

    assert answers(model, five(), graphs=True, overlap=True, **fp8) == plain


@pytest.mark.parametrize("way", [Way(block=16), Way(block=16, chunk=16), Way(block=32, blocks=9, order=1)])
def test_in_fp32_kernels_say_what_the_reference_says(directory: Path, way: Way) -> None:
    expected, asked = requests(), requests()

    run(decoder(directory, torch.float32, reference), expected, way, overlap=False, graphs=False)
    run(decoder(directory, torch.float32), asked, way, overlap=True)

    assert [one.output for one in asked] == [one.output for one in expected]


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_kv_fills_the_share_of_memory_that_it_may_have(directory: Path, share: float) -> None:
    model = decoder(directory, torch.bfloat16)
    gc.collect()
    torch.cuda.empty_cache()  # what other tests have left is not somebody else's
    free, total = torch.cuda.mem_get_info()
    if total - free > share * total / 2:
        pytest.skip("somebody else uses this GPU")
    plain = options(WAY, kv_dtype=torch.bfloat16)

    budget = device_budget(model, plain, share)
    blocks = kv_blocks(model.config, budget, block_size=16, kv_dtype=torch.bfloat16, max_model_len=256)
    runner = ModelRunner(model, options(WAY, kv_dtype=torch.bfloat16, blocks=blocks))

    try:
        free, total = torch.cuda.mem_get_info()
        assert blocks * kv_block_bytes(model.config, block_size=16, kv_dtype=torch.bfloat16) > 0.8 * share * total
        assert total - free < (share + 0.05) * total
    finally:
        runner.close()
