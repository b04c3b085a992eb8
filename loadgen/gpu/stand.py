"""The model under test and the runner it runs in.

Owns the weights (random), one runner at a time, and the size of its KV memory. Must never decide what is measured, nor
reach past the runner's own interface.
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from loadgen.gpu.attention import device_ops
from loadgen.gpu.drive import Drive, Enough, drive, request
from loadgen.gpu.rooflines import ModelShape
from loadgen.gpu.sections import Setting, TooLarge
from loadgen.gpu.timing import Stopwatch
from replica.blocks import BlockPool
from replica.model_runner import ModelRunner, RunnerOptions
from replica.models.config import ModelConfig
from replica.models.decoder import Decoder
from replica.scheduler import SchedulerLimits
from replica.warm_up import warm_up
from replica.weights import fill_dummy

BLOCK_SIZE = 16
RESERVE_BYTES = 8 << 30  # beside weights and KV: activations of a prefill, graphs, workspaces, the stopwatch


@dataclass(frozen=True, slots=True)
class Variant:
    """How the engine runs; everything on unless it says otherwise."""

    overlap: bool = True
    graphs: bool = True
    fp8: bool = False


@dataclass(frozen=True, slots=True)
class Size:
    """Room of a runner: requests and tokens of a step, tokens of a request, KV blocks (fewer if memory is short)."""

    max_running: int
    max_batched_tokens: int
    max_model_len: int
    blocks: int


class Stand:
    """`drive` and `replay_seconds` are all that one needs; the runner is made again only when the variant changes."""

    def __init__(self, setting: Setting, shape: ModelShape, size: Size) -> None:
        self.shape = shape
        self.size = size
        self.device = torch.device(setting.device)
        self._dtype = torch.float32 if setting.smoke else torch.bfloat16
        self._model: Decoder | None = None
        self._opened: tuple[Variant, ModelRunner, int] | None = None
        self._stopwatch: Stopwatch | None = None

    def drive(
        self,
        prompts: Sequence[Sequence[int]],
        outputs: Sequence[int],
        *,
        variant: Variant,
        enough: Enough | None = None,
        sharing: bool = True,
        needed: int = 0,
    ) -> Drive:
        """Fresh requests in an empty block pool. Raises TooLarge when there is no memory for `needed` blocks."""
        runner, blocks = self._open(variant)
        if needed > blocks:
            size = needed * self._block_bytes(variant)
            raise TooLarge(f"needs {size / 2**30:.0f} GiB of KV, more than the memory beside the weights")
        pool = BlockPool(blocks, BLOCK_SIZE, sharing=sharing)
        limits = SchedulerLimits(self.size.max_batched_tokens, self.size.max_running)
        requests = [request(*asked) for asked in zip(prompts, outputs, strict=True)]
        return drive(runner, pool, limits, requests, enough)

    def replay_seconds(self, rows: int) -> float:
        """What the device alone needs for the decode step of `rows` requests that was run last: from its inputs to the
        likeliest tokens. Raises TooLarge where nothing was captured.
        """
        replay = self._opened[1].replay(rows) if self._opened is not None else None
        if replay is None:
            raise TooLarge("there are no graphs on this device")
        self._stopwatch = self._stopwatch or Stopwatch(self.device)
        return self._stopwatch.time(replay).median

    def close(self) -> None:
        """Ends the runner and gives its memory back."""
        if self._opened is not None:
            self._opened[1].close()
        self._opened = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _open(self, variant: Variant) -> tuple[ModelRunner, int]:
        """The runner and how many blocks it has."""
        if self._opened is not None and self._opened[0] == variant:
            return self._opened[1:]
        self.close()
        model = self._load()
        blocks = self._blocks(variant)
        options = RunnerOptions(
            max_running=self.size.max_running,
            max_batched_tokens=self.size.max_batched_tokens,
            max_model_len=self.size.max_model_len,
            block_size=BLOCK_SIZE,
            blocks=blocks,
            kv_dtype=self._kv_dtype(variant),
            overlap=variant.overlap,
            graphs=variant.graphs,
            padded=self.device.type == "cpu",
        )
        runner = ModelRunner(model, options)
        warm_up(runner, options)
        self._opened = (variant, runner, blocks)
        return runner, blocks

    def _blocks(self, variant: Variant) -> int:
        if self.device.type != "cuda":
            return self.size.blocks
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(min(self.size.blocks, (free - RESERVE_BYTES) // self._block_bytes(variant)))

    def _block_bytes(self, variant: Variant) -> int:
        return BLOCK_SIZE * self.shape.kv_token_bytes(self._kv_dtype(variant).itemsize)

    def _kv_dtype(self, variant: Variant) -> torch.dtype:
        return torch.float8_e4m3fn if variant.fp8 else self._dtype

    def _load(self) -> Decoder:
        if self._model is None:
            with tempfile.TemporaryDirectory() as directory:
                (Path(directory) / "config.json").write_text(json.dumps(self.shape.config()))
                config = ModelConfig.read(Path(directory))
            self._model = Decoder(config, device_ops(self.device), device=self.device, dtype=self._dtype)
            fill_dummy(self._model)
        return self._model
