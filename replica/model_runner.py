"""The runner of a real model: steps in, tokens out, the device never waiting for the host if that can be helped.

Owns the KV caches, the device's copy of the last sampled tokens, and two threads: one launches the steps in order, the
other waits for their tokens. Preparing a step is numpy work on the event loop. So the next step is prepared and
launched while this one is computed: its unknown tokens are read from where this one will leave them.

Must never touch the device from the event loop, nor keep anything about a request there but its last token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kernels.ops import KvCache, Layout, Paged
from replica.batch import Batch, Batcher, Inputs
from replica.decode_graphs import DecodeGraphs, Forward, with_sampled
from replica.draws import Draws
from replica.models.decoder import Decoder
from replica.packing import to_device
from replica.rows import padded_width
from replica.runner import Sampled
from replica.sampling import Likely, sample
from replica.sampling_params import TokenLogprobs
from replica.scheduler import Step


class StepLost(RuntimeError):
    """The step needs a token of the step before, which failed."""


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """Room for `max_running` requests of at most `max_model_len` tokens each, in `blocks` KV blocks.

    `overlap`: take a step while one is under way. `graphs`: capture decode steps (on CUDA). `padded`: pad them as for
    graphs, also where none are captured.
    """

    max_running: int
    max_batched_tokens: int
    max_model_len: int
    block_size: int
    blocks: int
    kv_dtype: torch.dtype
    overlap: bool = True
    graphs: bool = True
    padded: bool = False


@dataclass(frozen=True, slots=True)
class Launched:
    """What a launched step leaves in the host's memory, valid once `done` has come (None: at once)."""

    tokens: Tensor
    likely: Likely | None
    likeliest: tuple[int, ...]
    done: torch.cuda.Event | None


class ModelRunner:
    """Serves one model on one device. `run` from one event loop; `close` at the end."""

    def __init__(self, model: Decoder, options: RunnerOptions) -> None:
        self.lookahead = int(options.overlap)
        self._model = model
        self._device = next(model.parameters()).device
        self._on_gpu = self._device.type == "cuda"
        width = -(-options.max_model_len // options.block_size)
        # Not a method of this object: else the graphs would refer to it, and it to them, and the caches would stay in
        # memory for as long as nobody collects such circles.
        self._forward: Forward = partial(model, caches=allocate_caches(model, options))
        self._sampled = torch.zeros(options.max_running, dtype=torch.int64, device=self._device)
        self._sampled_is_good = False
        self._each_one = torch.arange(options.max_running + 1, dtype=torch.int32, device=self._device)
        self._graphs: DecodeGraphs | None = None
        if options.padded or (options.graphs and self._on_gpu):
            with torch.inference_mode(), self._device_chosen():
                self._graphs = DecodeGraphs(
                    self._forward,
                    model.scores,
                    self._sampled,
                    vocabulary=model.config.vocab_size,
                    most=options.max_running,
                    width=padded_width(width),
                    longest_context=options.max_model_len,
                    capture=self._on_gpu and options.graphs,
                )
        self._batcher = Batcher(
            options.max_running,
            width,
            options.block_size,
            model.config.vocab_size,
            padding=self._graphs.padded if self._graphs else None,
        )
        self._launcher = self._thread("launch")
        self._waiter = self._thread("wait")

    def run(self, step: Step) -> Awaitable[Sampled]:
        """See `Runner.run`. Whatever goes wrong comes out of the awaitable; the next step may be given all the same."""
        try:
            batch = self._batcher.batch(step)
            launched = self._launcher.submit(self._launch, batch)
            return asyncio.wrap_future(self._waiter.submit(_wait, launched))
        except Exception as error:
            failed: asyncio.Future[Sampled] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed

    def compute(self, step: Step) -> Sampled:
        """The same for whoever has no event loop; not while a step is under way."""
        return _wait(self._launcher.submit(self._launch, self._batcher.batch(step)))

    def replay(self, rows: int) -> Callable[[], None] | None:
        """See `DecodeGraphs.replay`; None where there are no graphs."""
        return self._graphs.replay(rows) if self._graphs else None

    def close(self) -> None:
        """Ends the threads, after the steps under way."""
        self._launcher.shutdown()
        self._waiter.shutdown()

    @torch.inference_mode()
    def _launch(self, batch: Batch) -> Launched:
        if batch.guesses and not self._sampled_is_good:
            raise StepLost("it goes on from a token of the step before, and that one failed")
        self._sampled_is_good = False
        tensors = to_device((*batch.inputs, *(batch.draws or ())), self._device)
        inputs: Inputs[Tensor] = Inputs(*tensors[: len(Inputs._fields)])
        decoded = self._decoded(batch, inputs)
        tokens, likely = self._sample(batch, decoded, tensors[len(Inputs._fields) :])
        self._sampled[: batch.samples] = tokens
        self._sampled_is_good = True
        return self._on_its_way(tokens, likely, batch.plan.likeliest if batch.plan else ())

    def _decoded(self, batch: Batch, inputs: Inputs[Tensor]) -> tuple[Tensor, Tensor | None] | None:
        """Logits of the slices that sample, and the likeliest tokens where a graph has them; None if none samples."""
        if batch.prefills == 0 and self._graphs is not None:
            logits, likeliest = self._graphs.run(inputs)
            return logits[: batch.samples], likeliest[: batch.samples]
        hidden = self._hidden(batch, inputs)
        if batch.samples == 0:
            return None
        return self._model.logits(hidden[inputs.last_rows] if batch.prefills else hidden[: batch.samples]), None

    def _hidden(self, batch: Batch, inputs: Inputs[Tensor]) -> Tensor:
        """The last hidden states of all tokens of the step, [T, H]."""
        split = batch.decodes
        decodes = prefills = None
        tokens, contexts, tables = inputs.tokens, inputs.context_lens, inputs.block_tables
        if split:
            tokens[:split] = with_sampled(tokens[:split], inputs.sources, self._sampled)
            starts = self._each_one[: split + 1]
            decodes = Paged(starts, contexts[:split], tables[:split], 1, batch.longest_decode)
        if batch.prefills:
            prefills = Paged(
                inputs.query_starts, contexts[split:], tables[split:], batch.longest_query, batch.longest_prefill
            )
        return self._forward(tokens, inputs.positions, Layout(inputs.slots, decodes, prefills))

    def _sample(
        self, batch: Batch, decoded: tuple[Tensor, Tensor | None] | None, rest: list[Tensor]
    ) -> tuple[Tensor, Likely | None]:
        if decoded is None:
            return self._sampled[:0], None
        logits, likeliest = decoded
        if batch.plan is None:
            return logits.argmax(dim=-1) if likeliest is None else likeliest, None
        draws: Draws[Tensor] = Draws(*rest)
        return sample(logits, draws, batch.plan, self._model.ops, self._sampled)

    def _on_its_way(self, tokens: Tensor, likely: Likely | None, likeliest: tuple[int, ...]) -> Launched:
        """Sends the results to the host without waiting for them."""
        if not self._on_gpu:
            # The next step may begin before this one's tokens are fetched, and may leave its own in the same place.
            return Launched(tokens.clone(), likely, likeliest, None)
        tokens = _to_host(tokens)
        likely = Likely(*map(_to_host, likely)) if likely else None
        # While another step is under way, nobody misses the few microseconds that waking up takes; else spin.
        done = torch.cuda.Event(blocking=self.lookahead > 0)  # type: ignore[no-untyped-call]  # torch types it in part
        done.record()
        return Launched(tokens, likely, likeliest, done)

    def _device_chosen(self) -> AbstractContextManager[object]:
        """Kernels, graphs and events go to the thread's current device, whatever the tensors are on."""
        return torch.cuda.device(self._device) if self._on_gpu else nullcontext()

    def _thread(self, name: str) -> ThreadPoolExecutor:
        begin = (torch.cuda.set_device, (self._device,)) if self._on_gpu else (None, ())
        return ThreadPoolExecutor(1, f"model-{name}", *begin)


def allocate_caches(model: Decoder, options: RunnerOptions) -> list[KvCache]:
    """One cache a layer, of zeros: what lies behind a context may be read, and is then weighted with 0."""
    config = model.config
    shape = (2, options.blocks, config.kv_heads, options.block_size, config.head_dim)
    device = next(model.parameters()).device
    scales = model.kv_scales if options.kv_dtype == torch.float8_e4m3fn else [(1.0, 1.0)] * config.layers
    both = [torch.zeros(shape, dtype=options.kv_dtype, device=device) for _ in scales]
    return [KvCache(key_value[0], key_value[1], *pair) for key_value, pair in zip(both, scales, strict=True)]


def _wait(launched: Future[Launched]) -> Sampled:
    return _fetch(launched.result())


def _fetch(launched: Launched) -> Sampled:
    """Waits for the step's end. Waiting for an event lets other threads run."""
    if launched.done is not None:
        launched.done.synchronize()
    tokens = launched.tokens.tolist()
    if launched.likely is None:
        return Sampled(tokens)
    return Sampled(tokens, _logprobs(launched.likely, launched.likeliest))


def _logprobs(likely: Likely, likeliest: tuple[int, ...]) -> list[TokenLogprobs | None]:
    """An entry a sample: None where none are wanted, else as many of the likeliest as it wants."""
    wanted = zip(likely.chosen.tolist(), likely.tokens.tolist(), likely.logprobs.tolist(), strict=True)
    entries: list[TokenLogprobs | None] = []
    for count in likeliest:
        if count < 0:
            entries.append(None)
        else:
            chosen, tokens, logprobs = next(wanted)
            entries.append(TokenLogprobs(chosen, tuple(zip(tokens[:count], logprobs[:count], strict=True))))
    return entries


def _to_host(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
