"""The attention kernels, by themselves: a sweep of decoding, and of prefill with and without a cached prefix.

Owns the cases and what is counted: a decode's rate is its KV bytes over its time, a prefill's its visible
multiply-adds over its time. Every output is checked before it is timed. Must never measure through a model.

Where one call's KV is small, the call is repeated over the caches of several layers, as a model does it, so that the
whole works on 1 GB; the time is that of one layer. All launches are captured in a CUDA graph where that works.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from kernels.ops import Attending, KvCache, Ops
from loadgen.gpu import peers
from loadgen.gpu.pages import FP8, Pages, random_pages, relative_error
from loadgen.gpu.report import Row, row
from loadgen.gpu.rooflines import LLAMA_HEADS, QWEN_HEADS, TINY_HEADS, Heads, attention_flops, kv_bytes
from loadgen.gpu.sections import Case, Setting, TooLarge
from loadgen.gpu.timing import Stopwatch

WORKING_SET = 1 << 30
LAYERS = 32
WRONG = 2e-2

PEERS: dict[str, Callable[[Pages], peers.Work]] = {
    "flash": peers.flash,
    "cuDNN": peers.cudnn,
    "flex": peers.flex,
}
SDPA = ("flash", "cuDNN")
FLEX = ("flex",)  # apart from the others, as compiling it takes long


@dataclass(frozen=True, slots=True)
class Call:
    """`lengths` are contexts, `query_len` the query tokens of each; `peers` to measure beside it."""

    heads: Heads
    lengths: tuple[int, ...]
    query_len: int = 1
    kv: str = "bf16"
    block_size: int = 16
    peers: tuple[str, ...] = SDPA
    label: str = ""

    @property
    def name(self) -> str:
        what = self.label or f"bs {len(self.lengths)}, ctx {tokens(max(self.lengths))}"
        block = "" if self.block_size == 16 else f", blocks of {self.block_size}"
        return f"{self.heads}, {self.kv}: {what}{block}"

    @property
    def layer_bytes(self) -> int:
        return kv_bytes(self.heads, sum(self.lengths), 1 if self.kv == "fp8" else 2)


def tokens(count: int) -> str:
    return f"{count // 1024}k" if count % 1024 == 0 else str(count)


def even(heads: Heads, batch: int, context: int, kv: str = "bf16", **more: object) -> Call:
    return Call(heads, (context,) * batch, kv=kv, **more)  # type: ignore[arg-type]  # fields by name


def ragged(heads: Heads, batch: int) -> Call:
    """Contexts from 1/8 to 15/8 of 8k, evenly spread and shuffled, as in a replica under load."""
    lengths = [K + 14 * K * (7 * i % batch) // batch for i in range(batch)]
    return Call(heads, tuple(lengths), peers=(), label=f"bs {batch}, ctx 1k to 15k mixed")


K = 1024
DECODES = (
    even(LLAMA_HEADS, 32, 8 * K),
    even(LLAMA_HEADS, 1, 32 * K),
    even(LLAMA_HEADS, 128, 8 * K),
    even(LLAMA_HEADS, 128, 8 * K, "fp8", peers=()),
    even(QWEN_HEADS, 32, 32 * K),
    even(LLAMA_HEADS, 32, 32 * K),
    even(LLAMA_HEADS, 128, 32 * K),
    even(LLAMA_HEADS, 32, 8 * K, peers=FLEX, label="bs 32, ctx 8k, beside flex"),
    even(LLAMA_HEADS, 1, 32 * K, peers=FLEX, label="bs 1, ctx 32k, beside flex"),
    even(LLAMA_HEADS, 1, 1 * K),
    even(LLAMA_HEADS, 1, 8 * K),
    even(LLAMA_HEADS, 32, 1 * K),
    even(LLAMA_HEADS, 128, 1 * K),
    ragged(LLAMA_HEADS, 64),
    even(LLAMA_HEADS, 1, 32 * K, "fp8", peers=()),
    even(LLAMA_HEADS, 32, 8 * K, "fp8", peers=()),
    even(LLAMA_HEADS, 128, 32 * K, "fp8", peers=()),
    even(QWEN_HEADS, 128, 8 * K),
    even(QWEN_HEADS, 1, 32 * K),
    even(QWEN_HEADS, 128, 8 * K, "fp8", peers=()),
    even(LLAMA_HEADS, 1, 128 * K),
    even(LLAMA_HEADS, 32, 8 * K, peers=(), block_size=64),
    even(LLAMA_HEADS, 32, 8 * K, peers=(), block_size=256),
)
PREFILLS = (
    Call(LLAMA_HEADS, (8 * K,), 8 * K, label="8k"),
    Call(LLAMA_HEADS, (2 * K,), 2 * K, label="2k"),
    Call(LLAMA_HEADS, (32 * K,), 32 * K, label="32k"),
    Call(LLAMA_HEADS, (32 * K,), 2 * K, label="2k after a cached 30k"),
    Call(LLAMA_HEADS, (16 * K,), 8 * K, label="8k after a cached 8k"),
    Call(LLAMA_HEADS, (8 * K,), 8 * K, kv="fp8", peers=(), label="8k"),
    Call(QWEN_HEADS, (8 * K,), 8 * K, label="8k"),
    Call(LLAMA_HEADS, (8 * K,), 8 * K, peers=FLEX, label="8k, beside flex"),
    Call(LLAMA_HEADS, (32 * K,), 2 * K, peers=FLEX, label="2k after a cached 30k, beside flex"),
    Call(LLAMA_HEADS, (512,) * 16, 512, label="16 prompts of 512"),
    Call(LLAMA_HEADS, (8 * K,), 8 * K, peers=(), block_size=64, label="8k"),
)
TINY_DECODES = (
    even(TINY_HEADS, 2, 128),
    Call(TINY_HEADS, (16, 100), kv="fp8", peers=(), label="bs 2, ctx 16 and 100"),
)
TINY_PREFILLS = (
    Call(TINY_HEADS, (128,), 128, label="128"),
    Call(TINY_HEADS, (256,), 128, peers=(), label="128 after a cached 128"),
)


class Bench:
    """Measures calls on one device, each with fresh pages."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.device = torch.device(setting.device)
        self.dtype = torch.float32 if setting.smoke else torch.bfloat16
        self.ops = device_ops(self.device)
        self.stopwatch = Stopwatch(self.device)

    def decode(self, call: Call) -> list[Row]:
        pages = self._pages(call)
        attend = partial(self.ops.paged_decode, paged=pages.paged, attending=Attending(pages.scale))
        seconds, facts, note = self._ours(pages, lambda cache: attend(pages.query, cache))
        rate = call.layer_bytes / seconds
        peers, refused = self._beside(pages, call.peers)
        ceiling = self.setting.ceilings.bandwidth
        goals = {} if ceiling is None else _decode_goals(call, rate / ceiling)
        return [
            row(
                f"decode {call.name}",
                rate,
                "B/s",
                seconds=seconds,
                ceiling=ceiling,
                beside={name: call.layer_bytes / theirs for name, theirs in peers.items()},
                goals=goals,
                facts={"kv_bytes": call.layer_bytes, **facts},
                note="; ".join(filter(None, [note, *refused])),
            )
        ]

    def prefill(self, call: Call) -> list[Row]:
        pages = self._pages(call)
        attend = partial(self.ops.paged_prefill, paged=pages.paged, attending=Attending(pages.scale))
        seconds, facts, note = self._ours(pages, lambda cache: attend(pages.query, cache))
        flops = sum(attention_flops(call.heads, call.query_len, length) for length in call.lengths)
        peers, refused = self._beside(pages, call.peers)
        goals = {}
        if call.heads == LLAMA_HEADS and call.lengths == (8 * K,) and call.query_len == 8 * K and call.kv == "bf16":
            goals["prefill"] = flops / seconds
            if "cuDNN" in peers:
                goals["prefill_cudnn"] = peers["cuDNN"] / seconds
        return [
            row(
                f"prefill {call.name}",
                flops / seconds,
                "FLOP/s",
                seconds=seconds,
                ceiling=self.setting.ceilings.gemm,
                beside={name: flops / theirs for name, theirs in peers.items()},
                goals=goals,
                facts={"flops": flops, **facts},
                note="; ".join(filter(None, [note, *refused])),
            )
        ]

    def _pages(self, call: Call) -> Pages:
        gc.collect()
        repeated = 1 if self.setting.smoke else max(1, min(LAYERS, round(WORKING_SET / call.layer_bytes)))
        if call.query_len > 1:
            repeated = 1
        # The pages, their contiguous form, and what is made on the way from one to the other.
        self._need(3 * repeated * call.layer_bytes + 2 * WORKING_SET)
        return random_pages(
            call.heads,
            call.lengths,
            query_len=call.query_len,
            layers=repeated,
            block_size=call.block_size,
            kv_dtype=FP8 if call.kv == "fp8" else self.dtype,
            dtype=self.dtype,
            device=self.device,
        )

    def _need(self, size: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info(self.device)
            if size > free:
                raise TooLarge(f"needs {size / 2**30:.0f} GiB of device memory, {free / 2**30:.0f} are free")

    def _ours(
        self, pages: Pages, attend: Callable[[KvCache], torch.Tensor]
    ) -> tuple[float, dict[str, float | str], str]:
        """Seconds a layer, facts, a note. Raises ValueError when the output is wrong."""

        def work() -> torch.Tensor:
            for cache in pages.caches:
                out = attend(cache)
            return out

        error = relative_error(pages, work())
        if not error <= WRONG:
            raise ValueError(f"wrong: the output is off by {error:.2g} of its size")
        seconds, note = self._timed(pages, work)
        return seconds, {"relative_error": error, "layers": len(pages.caches), "tokens": sum(pages.lengths)}, note

    def _beside(self, pages: Pages, names: tuple[str, ...]) -> tuple[dict[str, float], list[str]]:
        """Seconds a layer of each peer that can do it and does it right, and why others cannot."""
        times, refused = {}, []
        for name in names:
            try:
                times[name], note = self._peer(pages, name)
                if note:
                    refused.append(f"{name} {note}")
            except Exception as reason:  # whatever torch says: a peer must never cost our own figure
                refused.append(f"no {name}: {' '.join(str(reason).split())[:80]}")
        return times, refused

    def _peer(self, pages: Pages, name: str) -> tuple[float, str]:
        work = PEERS[name](pages)
        error = relative_error(pages, work())
        if not error <= WRONG:
            raise ValueError(f"its output is off by {error:.2g} of its size")
        return self._timed(pages, work)

    def _timed(self, pages: Pages, work: Callable[[], torch.Tensor]) -> tuple[float, str]:
        """Seconds a layer, and a note when it is not the time of a graph's replay."""
        note = ""
        run: Callable[[], object] = work
        try:
            run = self.stopwatch.captured(work)
        except RuntimeError:
            note = "not captured in a graph"
        return self.stopwatch.time(run).median / len(pages.caches), note


def _decode_goals(call: Call, ratio: float) -> dict[str, float]:
    if call.layer_bytes >= 1e9:
        return {"decode": ratio}
    if call.lengths == (32 * K,) and call.kv == "bf16" and call.heads == LLAMA_HEADS:
        return {"decode_single": ratio}
    return {}


def device_ops(device: torch.device) -> Ops:
    """The kernels on a GPU; the plain reference elsewhere."""
    if device.type == "cuda":
        from kernels import triton_ops

        return triton_ops
    from kernels import reference

    return reference


def decode_cases(setting: Setting) -> Iterator[Case]:
    bench = Bench(setting)
    for call in TINY_DECODES if setting.smoke else DECODES:
        yield Case(f"decode {call.name}", partial(bench.decode, call))


def prefill_cases(setting: Setting) -> Iterator[Case]:
    bench = Bench(setting)
    for call in TINY_PREFILLS if setting.smoke else PREFILLS:
        yield Case(f"prefill {call.name}", partial(bench.prefill, call))
