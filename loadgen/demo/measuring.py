"""One run of a plan on a fleet of its own: watched, shown, and with what it cost this machine.

Owns the life of a run in a comparison that stands or falls as a whole: a process that dies ends it. Must never change
what is asked.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import msgspec

from loadgen.plans.plan import Plan
from loadgen.plans.prompts import Prompts
from loadgen.processes import ChildFailed
from loadgen.reports.schema import RunReport, Slo
from loadgen.runs.live import Live
from loadgen.runs.once import run_once
from loadgen.runs.options import Measure
from loadgen.runs.reporting import report_of
from loadgen.runs.runner import Runner
from loadgen.runs.stands import Stand

SLO = Slo(ttft_s=0.5, tpot_s=0.05)
DRAIN_S = 8.0


class Measured(msgspec.Struct, frozen=True):
    """`cores_busy`: CPU seconds a second of client, routers and replicas together, their start included."""

    report: RunReport
    cores_busy: float


async def measured(
    opening: AbstractAsyncContextManager[Stand], plan: Plan, prompts: Prompts, live: Live, drain_s: float = DRAIN_S
) -> Measured:
    """Opens the stand for this run alone. Raises ChildFailed as soon as one of its processes ends before the run does.

    Receipts are left unread: nothing here needs them, and reading is work for the router that is measured. A late
    client does not make the run invalid, since `conclusion` tells of it.
    """
    with CpuMeter() as meter:
        async with opening as stand:
            target = msgspec.structs.replace(stand.target, control=None)
            runner = Runner(target, plan, prompts, drain_s=drain_s)
            result = await run_once(runner, stand, show=live.follow)
            if result.interrupted is not None:
                raise ChildFailed(result.interrupted)
    measure = Measure(SLO, math.inf, drain_s, events=(), session_header=None, ideals=False)
    return Measured(report_of(target, plan, result, measure), meter.cores_busy)


class CpuMeter:
    """A context around a fleet's whole life: CPU seconds a second, of this process and its children that have ended."""

    def __init__(self) -> None:
        self.cores_busy = 0.0

    def __enter__(self) -> Self:
        self._cpu, self._wall = _cpu_seconds(), time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cores_busy = (_cpu_seconds() - self._cpu) / (time.monotonic() - self._wall)


def ended(name: str, run: Measured) -> str:
    """The run in a line, for whoever watches."""
    figures = run.report.figures
    hit_rate, ttft_s = figures.hit_rate or 0.0, figures.ttft_p50_s or 0.0
    return (
        f"{name:>12}  {figures.requests} requests in {figures.duration_s:.1f} s, {figures.errors} errors, "
        f"hit rate {hit_rate:.1%}, TTFT p50 {ttft_s * 1e3:,.0f} ms"
    )


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
