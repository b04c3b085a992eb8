"""A run of the client over a fleet: watched, so that a dead process ends it, and with what it cost this machine.

Owns the watching and the signs that figures show the machine rather than the fleet. Must never change the run.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Self

from loadgen.client import OpenLoopClient
from loadgen.fleet import Fleet
from loadgen.processes import ChildFailed
from loadgen.records import Record
from loadgen.report import PolicyReport

BUSY_SHARE = 0.8
LATE_MS = 100.0


async def attended(client: OpenLoopClient, fleet: Fleet, show: Coroutine[None, None, None]) -> list[Record]:
    """Runs the client to its end; raises ChildFailed as soon as one of the fleet's processes ends before."""
    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            attendants = [group.create_task(fleet.children.watch()), group.create_task(show)]
            await client.run()
            for attendant in attendants:
                attendant.cancel()
    except* ChildFailed as failed:
        failure = failed.exceptions[0]
    if failure is not None:  # raised out here, it comes alone and not in a group
        raise failure
    return client.records


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


def machine_warnings(reports: Mapping[str, PolicyReport]) -> Iterator[str]:
    """Signs that times show this machine rather than the policies."""
    cores = os.cpu_count() or 1
    for name, report in reports.items():
        if (report.cores_busy or 0.0) > BUSY_SHARE * cores:
            yield f"under {name}, {report.cores_busy:.1f} of {cores} cores were busy; times show this machine too."
        if (report.lag_p99_ms or 0.0) > LATE_MS:
            yield f"under {name}, the client itself was late by {report.lag_p99_ms:,.0f} ms (p99); run it again."


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
