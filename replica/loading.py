"""A real model, from its directory to a runner that is ready to serve.

Owns the choices of device, dtype and kernels, and the order of the loading: configuration, weights, KV memory, runner.
Loaded only when a real model is served, for it needs torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from kernels import reference
from kernels.ops import Ops
from radix.chat import ChatTokenizer
from replica.backend import Backend, Progress
from replica.generation_config import read_defaults
from replica.memory import check_room, device_budget, host_budget, kv_blocks
from replica.model_runner import ModelRunner, RunnerOptions
from replica.models.config import ModelConfig, ModelError
from replica.models.decoder import Decoder
from replica.settings import ModelSource, Settings
from replica.warm_up import warm_up
from replica.weights import fill_dummy, load

log = logging.getLogger(__name__)

GIB = 1 << 30
_OLDEST_GPU = (8, 0)  # bf16 and asynchronous copies
_OLDEST_FP8_GPU = (8, 9)
_GPU_BLOCKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model runs, in which formats, by which kernels."""

    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype
    ops: Ops

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


def load_backend(
    settings: Settings, source: ModelSource, tokenizer: ChatTokenizer, progress: Progress | None
) -> Backend:
    """Raises ModelError for whatever keeps the model from being served; it says what to do."""
    config = ModelConfig.read(source.directory)
    defaults = read_defaults(source.directory)
    _check(settings, config, tokenizer)
    place = choose_place(source, config)
    if place.on_gpu and settings.block_size not in _GPU_BLOCKS:
        raise ModelError(
            f"on a GPU a block has 16, 32, 64, 128 or 256 tokens (--block-size), not {settings.block_size}"
        )
    longest = settings.max_model_len or config.max_position_embeddings
    model = _load_model(source, config, place, longest, progress)
    options = RunnerOptions(
        max_running=settings.limits.max_running,
        max_batched_tokens=settings.limits.max_batched_tokens,
        max_model_len=longest,
        block_size=settings.block_size,
        blocks=1,
        kv_dtype=place.kv_dtype,
        overlap=source.overlap,
        graphs=source.graphs,
    )
    options = _with_room(options, settings, source, model, place)
    kv = f"the {options.blocks * options.block_size} tokens of KV"
    with _fitting(kv, place, "lower --kv-tokens, --max-running or --gpu-memory-utilization"):
        runner = ModelRunner(model, options)
        if place.on_gpu:
            warm_up(runner, options)
    log.info(
        "%s on %s in %s: %d KV blocks for %d tokens, contexts of up to %d",
        *(config.architecture, place.device, _name(place.dtype), options.blocks, options.blocks * options.block_size),
        options.max_model_len,
    )
    return Backend(
        runner,
        options.blocks,
        options.max_model_len,
        defaults,
        logprobs=True,
        eos_ids=config.eos_ids,
        close=runner.close,
    )


def choose_place(source: ModelSource, config: ModelConfig) -> Place:
    """What "auto" means here. Raises ModelError for a device that is not there, or cannot do what is asked."""
    name = source.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        dtype = torch.float32 if source.dtype == "auto" else _dtype(source.dtype)
        return Place(torch.device("cpu"), dtype, _kv_dtype(source, dtype), reference)
    device = _gpu(name)
    if torch.cuda.get_device_capability(device) < _OLDEST_GPU:
        raise ModelError(
            f"{name} is too old a GPU, for it needs compute capability 8.0; --device cpu is slow, but works"
        )
    if source.kv_dtype == "fp8" and torch.cuda.get_device_capability(device) < _OLDEST_FP8_GPU:
        raise ModelError("this GPU has no FP8 (compute capability 8.9 or later); leave out --kv-cache-dtype")
    dtype = _dtype(source.dtype)
    if source.dtype == "auto":
        dtype = torch.bfloat16 if config.dtype == "float32" else _dtype(config.dtype)
    # The default, said aloud: unset, Triton warns of it at every start.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    from kernels import triton_ops

    return Place(device, dtype, _kv_dtype(source, dtype), triton_ops)


def _gpu(name: str) -> torch.device:
    """Raises ModelError when it is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        there = f"there are {count}" if count else "torch sees none"
        raise ModelError(f"there is no GPU {index} ({there}); use another --device, or --device cpu")
    return torch.device("cuda", index)


def _check(settings: Settings, config: ModelConfig, tokenizer: ChatTokenizer) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelError(
            f"the tokenizer has token ids up to {tokenizer.vocab_size - 1}, but the model knows {config.vocab_size} "
            "tokens: they do not belong together (--tokenizer)"
        )
    if (settings.max_model_len or 0) > config.max_position_embeddings:
        raise ModelError(
            f"the model was made for contexts of {config.max_position_embeddings} tokens at most; lower --max-model-len"
        )


def _load_model(
    source: ModelSource, config: ModelConfig, place: Place, longest: int, progress: Progress | None
) -> Decoder:
    with _fitting("its weights", place, "free some, or serve a smaller model"):
        model = Decoder(config, place.ops, device=place.device, dtype=place.dtype, longest=longest)
        if source.load_format == "dummy":
            fill_dummy(model)
        else:
            load(model, source.directory, progress)
    return model.eval()


@contextmanager
def _fitting(what: str, place: Place, advice: str) -> Iterator[None]:
    """Raises ModelError where memory runs out within."""
    try:
        yield
    except RuntimeError as error:
        # A host's memory has no error class of its own.
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise ModelError(f"{what} do not fit into the memory of {place.device}; {advice}") from None
        raise


def _with_room(
    options: RunnerOptions, settings: Settings, source: ModelSource, model: Decoder, place: Place
) -> RunnerOptions:
    """The options with as many blocks as are asked for, or else as there is memory for. A longest context that nobody
    asked for follows the blocks.
    """
    asked = settings.max_model_len
    if settings.kv_blocks is not None:
        blocks = settings.kv_blocks
        check_room(blocks, block_size=options.block_size, max_model_len=asked or 1)
    else:
        budget = device_budget(model, options, source.memory_share) if place.on_gpu else host_budget()
        log.debug("%.2f GiB for KV", budget / GIB)
        blocks = kv_blocks(
            model.config,
            budget,
            block_size=options.block_size,
            kv_dtype=options.kv_dtype,
            max_model_len=asked or 1,
        )
    return replace(options, blocks=blocks, max_model_len=min(options.max_model_len, blocks * options.block_size))


def _kv_dtype(source: ModelSource, dtype: torch.dtype) -> torch.dtype:
    return torch.float8_e4m3fn if source.kv_dtype == "fp8" else dtype


def _dtype(name: str) -> torch.dtype:
    return {"float16": torch.float16, "float32": torch.float32}.get(name, torch.bfloat16)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
