"""What the card can do at best, measured before anything is compared with it.

Owns the ceilings: copying and reading memory, and a large matrix product in bf16; with the clocks under load. Must
never set anything on the card.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import torch
import triton

from loadgen.gpu.report import COPY, GEMM, READ, Row, row
from loadgen.gpu.sections import Case, Setting
from loadgen.gpu.timing import Stopwatch

COPY_BYTES = 4 << 30
GEMM_SIZE = 8192
LOAD_PRODUCTS = 2000  # more than a second of them is still queued when the clocks are read

CLOCKS = {
    "sm_mhz": "clocks.sm",
    "sm_max_mhz": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "power_w": "power.draw",
    "temperature_c": "temperature.gpu",
}


def cases(setting: Setting) -> Iterator[Case]:
    device = torch.device(setting.device)
    stopwatch = Stopwatch(device)
    size = 1 << 20 if setting.smoke else COPY_BYTES
    edge = 64 if setting.smoke else GEMM_SIZE
    yield Case(COPY, lambda: [_copy(stopwatch, device, size)])
    yield Case(READ, lambda: [_read(stopwatch, device, size)])
    yield Case(GEMM, lambda: [_gemm(stopwatch, device, edge)])


def _copy(stopwatch: Stopwatch, device: torch.device, size: int) -> Row:
    source = _noise(size, device)
    target = torch.empty_like(source)
    timing = stopwatch.time(lambda: target.copy_(source))
    rate = 2 * size / timing.median
    return row(COPY, rate, "B/s", seconds=timing.median, facts=about(device), note="bytes read and bytes written")


def _read(stopwatch: Stopwatch, device: torch.device, size: int) -> Row:
    source = _noise(size, device).view(torch.float32)
    total = torch.empty((), device=device)
    timing = stopwatch.time(lambda: torch.sum(source, dim=0, out=total))
    return row(READ, size / timing.median, "B/s", seconds=timing.median, note="torch.sum of fp32")


def _noise(size: int, device: torch.device) -> torch.Tensor:
    return torch.randn(size // 4, device=device)


def _gemm(stopwatch: Stopwatch, device: torch.device, edge: int) -> Row:
    left, right = (torch.randn(edge, edge, device=device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    timing = stopwatch.time(lambda: torch.mm(left, right, out=product))
    facts: dict[str, float | str] = {"edge": edge}
    note = ""
    if device.type == "cuda":
        for _ in range(LOAD_PRODUCTS):
            torch.mm(left, right, out=product)
        clocks = read_clocks()  # the device is still busy
        torch.cuda.synchronize()
        facts |= clocks
        note = "under load: " + (", ".join(f"{name} {value:g}" for name, value in clocks.items()) or "clocks unknown")
    return row(GEMM, 2 * edge**3 / timing.median, "FLOP/s", seconds=timing.median, facts=facts, note=note)


def about(device: torch.device) -> dict[str, float | str]:
    """The device and what drives it."""
    facts: dict[str, float | str] = {"torch": str(torch.__version__), "triton": triton.__version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
        }
    return facts


def read_clocks() -> dict[str, float]:
    """The first card's clocks, power and temperature now, as far as nvidia-smi tells them."""
    try:
        told = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(CLOCKS.values())}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values = (value.strip() for line in told.splitlines()[:1] for value in line.split(","))
    # What a card does not tell is not a number.
    return {name: float(value) for name, value in zip(CLOCKS, values, strict=False) if value.replace(".", "").isdigit()}
