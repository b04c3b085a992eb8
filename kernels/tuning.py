"""Sizes of tiles, warps and pipelines: fixed, by shape and type, for Hopper (H100, H200); smaller ones where a GPU has
less shared memory (163 KiB on an A100, 99 on an L40S or a consumer's card).

Owns what the attention kernels are launched with, and why. Nothing is tried out while serving: a request never waits
for a search, and two runs compute the same. Must never launch anything.

A multiprocessor has 64 Ki registers (a thread at most 255), 228 KiB of shared memory (a program at most 227, and 1 more
is reserved for each) and room for 64 warps. What each configuration takes of them is the compiler's word, from
`python -m tests.kernels.compile_check tests.kernels.attention_launches:launches`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from kernels.launch_sizes import next_power_of_2

FP8 = torch.float8_e4m3fn
ROOMY_BYTES = 228 * 1024  # of a multiprocessor


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors the device has. Without CUDA, a few: what the interpreter runs is divided as well."""
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@lru_cache
def is_roomy(device: torch.device) -> bool:
    """Whether a program may have the shared memory that the large tiles want, as on Hopper."""
    if device.type != "cuda":
        return True
    return torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor >= ROOMY_BYTES


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How paged decode is launched.

    `rows`: query heads of a program, at least the 16 that the tensor cores want; `tile`: tokens of KV a step;
    `programs`: how many fit on a multiprocessor at once (rather one too few: a division for more than fit leaves a last
    round half empty); `settled`: tiles of a split that make its start-up and its partial result cheap, so that no split
    is made longer before all splits together fill the device `waves` times over, which evens out their ends.
    """

    rows: int
    tile: int
    warps: int
    stages: int
    programs: int
    settled: int = 8
    waves: int = 4

    def launch(self) -> dict[str, Any]:
        return launch(self.warps, self.stages)


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """How paged prefill is launched.

    `rows`: packed query rows of a program; `tile`: tokens of KV a step; `registers`: a limit, where one more would cost
    a program on each multiprocessor.
    """

    rows: int
    tile: int
    warps: int
    stages: int
    registers: int | None = None

    def launch(self) -> dict[str, Any]:
        return launch(self.warps, self.stages) | ({} if self.registers is None else {"maxnreg": self.registers})


def launch(warps: int, stages: int) -> dict[str, Any]:
    """Options of a launch. Triton is about to change what it does unless told: multiply-adds are to be fused."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def decode_config(dim: int, group: int, query: torch.dtype, cache: torch.dtype) -> DecodeConfig:
    """For `group` query heads of a KV head. Keys and values of a tile are 32 KiB (FP8: 16, for the conversion takes
    registers); with 3 stages two tiles are on their way while one is computed, and with 2 or 3 programs on a
    multiprocessor some 100 KiB are, several times what the latency of HBM asks for.
    """
    padded = next_power_of_2(dim)
    rows = 16 if group <= 16 else 32 if group <= 32 else 64
    if query == torch.float32:  # 100 KiB, up to 255 registers
        return DecodeConfig(rows=rows, tile=4096 // padded, warps=4, stages=3, programs=2 if rows == 16 else 1)
    if cache == FP8:  # 57 KiB, 170 to 190 registers
        return DecodeConfig(rows=rows, tile=8192 // padded, warps=4, stages=4, programs=2)
    # 70 to 73 KiB and 80 to 120 registers with 16 rows; up to 112 KiB and 210 registers with more
    return DecodeConfig(rows=rows, tile=8192 // padded, warps=4, stages=3, programs=3 if rows == 16 else 2)


def prefill_config(dim: int, query: torch.dtype, cache: torch.dtype, roomy: bool = True) -> PrefillConfig:
    """128 rows are two warpgroups of 64, the least that the tensor cores take at full speed, sharing each tile of KV:
    half the rows would ask more of the L2 cache than it gives."""
    if query == torch.float32:  # for correctness: three products of TF32 for one of FP32
        return PrefillConfig(rows=64, tile=32, warps=4, stages=2) if dim <= 128 else PrefillConfig(32, 32, 8, 2)
    if not roomy:  # compiled for sm_80 and sm_89: 32, 48 and 68 KiB, 175 to 255 registers, spilled only beyond 128
        if dim > 128:
            return PrefillConfig(rows=64, tile=32, warps=4, stages=2)
        return PrefillConfig(rows=128, tile=64 if dim <= 64 else 32, warps=8, stages=2)
    if dim <= 64:  # 128 registers and 64 KiB: two programs, whose softmax and products overlap
        return PrefillConfig(rows=128, tile=64, warps=8, stages=3, registers=128)
    if dim > 128:  # 160 KiB and 250 registers: the output alone takes 128
        return PrefillConfig(rows=128, tile=32, warps=8, stages=3)
    if cache == FP8:  # 80 KiB and 225 registers
        return PrefillConfig(rows=128, tile=64, warps=8, stages=3)
    # 224 KiB and all 255 registers, spilled only outside the loop; a fifth fewer instructions a token than tiles of 64
    return PrefillConfig(rows=128, tile=128, warps=8, stages=3)
