"""How long work on a device takes: medians of CUDA events, each repetition with a swept cache.

Owns the way of measuring. Must never decide what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

WARM_UPS = 3
FEWEST, MOST = 7, 50

# Reading 2 GiB takes some 0.5 ms: enough to push everything else out of the L2 cache, and for the host to have queued
# the measured work before the device comes to it, so that launches cost nothing.
SWEEP_BYTES = 1 << 30
SWEEPS = 2


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds a repetition, and how many there were."""

    median: float
    fastest: float
    slowest: float
    repetitions: int


class Stopwatch:
    """Times work on one device. On a CPU nothing is swept and the clock is the host's: good enough for a smoke test."""

    def __init__(self, device: torch.device, *, target_s: float = 0.25) -> None:
        self._cuda = device.type == "cuda"
        self._target_s = target_s
        if self._cuda:
            self._sweep = torch.ones(SWEEP_BYTES // 4, dtype=torch.float32, device=device)
            self._swept = torch.empty((), dtype=torch.float32, device=device)

    def time(self, work: Callable[[], object]) -> Timing:
        """The work is repeated for about `target_s` seconds, at least FEWEST and at most MOST times."""
        for _ in range(WARM_UPS if self._cuda else 1):
            work()
        first = self._once(work)
        repetitions = max(FEWEST, min(MOST, int(self._target_s / max(first, 1e-6)))) if self._cuda else 2
        times = [self._once(work) for _ in range(repetitions)]
        return Timing(median(times), min(times), max(times), repetitions)

    def _once(self, work: Callable[[], object]) -> float:
        if not self._cuda:
            started = time.perf_counter()
            work()
            return max(time.perf_counter() - started, 1e-9)
        begin, end = _event(), _event()
        # Read, not written: dirty lines would go back to memory at the expense of the measured work.
        for _ in range(SWEEPS):
            torch.sum(self._sweep, dim=0, out=self._swept)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def captured(self, work: Callable[[], object]) -> Callable[[], object]:
        """The work as a CUDA graph's replay, so that many short launches cost the host nothing. Raises RuntimeError
        when it cannot be captured.
        """
        if not self._cuda:
            return work
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it without types
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it without types
