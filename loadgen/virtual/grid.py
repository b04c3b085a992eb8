"""A grid of simulations: every combination of trace, capacity, fleet size and rate, under the same policies.

Owns the cells, and the command line of `bench simulate` that each stands for. Must never simulate anything itself: a
cell's result is what that command writes, and anybody can run it alone.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import msgspec
from xxhash import xxh3_64_hexdigest

from loadgen.virtual.report import SimulationReport


class Cell(msgspec.Struct, frozen=True):
    """One simulation; `rate_scale` is how many times as fast requests come."""

    trace: Path
    capacity_tokens: int
    replicas: int
    rate_scale: float

    def file(self, shared: Sequence[str]) -> str:
        """Its name; that of a cell with other `shared` options is another."""
        trace = self.trace.name.partition(".")[0]
        options = xxh3_64_hexdigest("\0".join(shared).encode())[:8]
        return f"{trace}-{self.capacity_tokens}-{self.replicas}-{self.rate_scale:g}-{options}.json"

    def arguments(self) -> list[str]:
        """Of `radixgate bench simulate`."""
        sizes = ["--capacity-tokens", str(self.capacity_tokens), "--replicas", str(self.replicas)]
        return ["--trace", str(self.trace), *sizes, "--rate-scale", f"{self.rate_scale:g}"]


class CellFailed(RuntimeError):
    """A simulation ended with an error; the message holds its command and what it said."""


def cells(
    traces: Sequence[Path], capacities: Sequence[int], replicas: Sequence[int], rate_scales: Sequence[float]
) -> list[Cell]:
    """Each once."""
    return list(dict.fromkeys(Cell(*parts) for parts in product(traces, capacities, replicas, rate_scales)))


async def simulate(cell: Cell, shared: Sequence[str], directory: Path) -> SimulationReport:
    """Runs the cell, unless its file is there already. Raises CellFailed. Cancelled, it ends the simulation."""
    result = directory / cell.file(shared)
    if not result.exists():
        arguments = ["bench", "simulate", *cell.arguments(), *shared]
        unfinished = result.with_suffix(".unfinished")
        command = [sys.executable, "-P", "-m", "router.main", *arguments, "--json", str(unfinished)]
        process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE)
        try:
            _, said = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise CellFailed(f"radixgate {' '.join(arguments)}\n{said.decode(errors='replace').strip()}")
        unfinished.rename(result)
    try:
        return msgspec.json.decode(result.read_bytes(), type=SimulationReport)
    except msgspec.DecodeError as error:
        raise CellFailed(f"{result} (--out) is no result of `bench simulate` ({error}); remove it") from None


async def simulate_all(
    listed: Sequence[Cell], shared: Sequence[str], directory: Path, jobs: int, on_done: Callable[[], object]
) -> list[tuple[Cell, SimulationReport]]:
    """In order, `jobs` at a time; `on_done` hears of each. Raises CellFailed at the first that fails; what is done
    stays in `directory`.
    """
    places = asyncio.Semaphore(jobs)

    async def one(cell: Cell) -> SimulationReport:
        async with places:
            report = await simulate(cell, shared, directory)
        on_done()
        return report

    try:
        async with asyncio.TaskGroup() as group:
            under_way = [group.create_task(one(cell)) for cell in listed]
    except* CellFailed as failed:
        raise failed.exceptions[0] from None
    return [(cell, task.result()) for cell, task in zip(listed, under_way, strict=True)]
