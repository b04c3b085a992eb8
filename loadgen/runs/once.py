"""One run of a plan on a stand: watched, with its events, and with the router's receipts joined in.

Owns what goes on beside the requests. Must never hold the requests up, and loses nothing that was measured: a run that
is interrupted, by a signal or by a process that died, has its result too.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from loadgen.processes import ChildFailed
from loadgen.records import Record
from loadgen.reports.schema import Happened
from loadgen.runs.counters import Meter, Work
from loadgen.runs.events import Event, check_events, play
from loadgen.runs.receipts import ReceiptReader, with_predictions
from loadgen.runs.runner import Runner
from loadgen.runs.stands import Stand
from scoring.decision import Receipt


class RunResult(NamedTuple):
    """`interrupted` says why the run ended early, None where it did not; `receipts_failure` why there are no (more)
    receipts, "" where there are. `work` is by the replicas' own counters.
    """

    records: list[Record]
    receipts: list[Receipt]
    events: tuple[Happened, ...]
    interrupted: str | None
    receipts_failure: str
    work: Work = Work({})


async def run_once(
    runner: Runner,
    stand: Stand,
    events: Sequence[Event] = (),
    show: Callable[[Runner], Coroutine[Any, Any, None]] | None = None,
) -> RunResult:
    """Runs `runner` to its end; `runner.stop` ends it early. `show` runs beside it until then.

    Raises ValueError before anything is sent when the stand cannot have one of the events.
    """
    check_events(events, stand, runner.plan.duration_s)
    happened: list[Happened] = []
    meter = Meter(stand.own_replicas)
    await meter.begin()
    reader = ReceiptReader(runner) if runner.target.control else None
    with _few_pauses():
        async with asyncio.TaskGroup() as group:
            running = group.create_task(runner.run())
            beside = [
                group.create_task(_watch(stand, runner)),
                group.create_task(play(events, stand, runner.now, happened)),
            ]
            if reader is not None:
                beside.append(group.create_task(reader.follow()))
            if show is not None:
                beside.append(group.create_task(show(runner)))
            await running
            interrupted = runner.interrupted  # a signal that comes later interrupts nothing
            for task in beside:
                task.cancel()
    work = await meter.work()
    if reader is None:
        return RunResult(runner.records, [], tuple(happened), interrupted, "", work)
    await reader.read()
    records = with_predictions(runner.records, reader.receipts, runner.mark)
    return RunResult(records, reader.receipts, tuple(happened), interrupted, reader.failure, work)


@contextmanager
def _few_pauses() -> Iterator[None]:
    """The garbage collector leaves alone what is there already: a large plan would make it stop everything for long."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _watch(stand: Stand, runner: Runner) -> None:
    try:
        await stand.watch()
    except ChildFailed as failure:
        runner.stop(str(failure))
