"""What the user sees while a run is under way.

Owns the live lines on a terminal (nothing moves where there is none). Must never influence the run it shows.
"""

from __future__ import annotations

import asyncio
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from loadgen.client import OpenLoopClient
from loadgen.report import PolicyReport
from loadgen.reports.statistics import percentile

TICK_S = 0.25


class Display:
    """A bar a policy, filling with the schedule's time; entered around all the runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:>12}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            console=console,
            transient=True,
            auto_refresh=False,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._progress.stop()

    def begin(self, policy: str, duration_s: float) -> TaskID:
        bar = self._progress.add_task(policy, total=duration_s, state="starting the fleet")
        self._progress.refresh()
        return bar

    async def follow(self, bar: TaskID, client: OpenLoopClient) -> None:
        """Shows the client's state until cancelled."""
        while True:
            self._progress.update(bar, completed=client.now(), state=_state(client))
            self._progress.refresh()
            await asyncio.sleep(TICK_S)

    def end(self, bar: TaskID, policy: str, report: PolicyReport) -> None:
        self._progress.remove_task(bar)
        hit_rate, ttft = report.hit_rate or 0.0, report.ttft_p50_ms or 0.0
        self._console.print(
            f"{policy:>12}  {report.requests} requests in {report.duration_s:.1f} s, {report.errors} errors, "
            f"hit rate {hit_rate:.1%}, TTFT p50 {ttft:,.0f} ms",
            highlight=False,
        )


def _state(client: OpenLoopClient) -> str:
    done = [record for record in client.records if not record.error]
    failed = len(client.records) - len(done)
    prompt = sum(record.prompt_tokens for record in done) or 1
    hit_rate = sum(record.cached_tokens for record in done) / prompt
    ttft = percentile([record.ttft * 1e3 for record in done if record.ttft is not None], 50) or 0.0
    state = f"{len(done)} answered, {client.in_flight} under way, hit rate {hit_rate:.0%}, TTFT p50 {ttft:,.0f} ms"
    return f"{state}, [red]{failed} failed[/]" if failed else state
