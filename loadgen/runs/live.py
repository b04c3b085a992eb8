"""What is seen of a run while it is under way.

Owns a bar that fills with the plan's time on a terminal, and a line now and then elsewhere. Must never hold the run up:
what it shows is worked out from the few latest records.
"""

from __future__ import annotations

import asyncio
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from loadgen.reports.figures import reports_cached
from loadgen.reports.statistics import percentile
from loadgen.runs.runner import Runner

TICK_S = 0.5
LINE_S = 10.0
LATEST = 200


class Live:
    """A context around one run or several."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}", markup=False),
            console=console,
            transient=True,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("", total=1.0, state="", visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._progress.stop()

    def say(self, name: str, state: str) -> None:
        """What goes on before or after a run."""
        if self._console.is_terminal:
            self._progress.update(self._bar, description=name, state=state, completed=0, visible=True)
            self._progress.refresh()
        else:
            self._console.print(Text(f"{name}: {state}"))

    async def follow(self, runner: Runner) -> None:
        """Shows the run's state until cancelled."""
        next_line = LINE_S
        while True:
            if self._console.is_terminal:
                done = min(1.0, runner.now() / runner.plan.duration_s)
                self._progress.update(
                    self._bar, description=runner.target.name, state=state_of(runner), completed=done, visible=True
                )
                self._progress.refresh()
            elif runner.now() >= next_line:
                next_line += LINE_S
                self._console.print(Text(f"{runner.target.name}: {runner.now():.0f} s, {state_of(runner)}"))
            await asyncio.sleep(TICK_S)


def state_of(runner: Runner) -> str:
    """In a line: how much was answered so far, and how the latest of it went."""
    latest = runner.records[-LATEST:]
    good = [record for record in latest if not record.error]
    prompt = sum(record.prompt_tokens for record in good)
    ttft = percentile(sorted(record.ttft for record in good if record.ttft is not None), 50)
    words = [f"{len(runner.records)} of {runner.plan.requests} ended", f"{runner.in_flight} under way"]
    if prompt and reports_cached(good):
        words.append(f"hit rate {sum(record.cached_tokens for record in good) / prompt:.0%}")
    if ttft is not None:
        words.append(f"TTFT p50 {ttft * 1e3:,.0f} ms")
    if failed := len(latest) - len(good):
        words.append(f"{failed} of the last {len(latest)} failed")
    return ", ".join(words)
