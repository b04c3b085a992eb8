"""One line of a benchmark table, and how each measurement gets a process of its own.

Owns the form in which sections hand over their figures. Must never know what they measure.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import msgspec
import uvloop

P = ParamSpec("P")
T = TypeVar("T")

PAGE_BYTES = 4096


class Row(msgspec.Struct, frozen=True):
    """`table` is a title, `what` names the line, `figures` maps a column, its unit included, to a figure."""

    table: str
    what: str
    figures: dict[str, float]


def in_fresh_process(measure: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Memory and pauses are those of this measurement alone. `measure` must be a module's function."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *args, **kwargs).result()


def on_a_loop(measure: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `in_fresh_process`, of a coroutine function, on an event loop as a router's."""
    return in_fresh_process(_run, partial(measure, *args, **kwargs))


def _run(measure: Callable[[], Coroutine[Any, Any, T]]) -> T:
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # as router/app.py does
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measure())


def resident_bytes() -> int:
    """Physical memory of this process, after a collection."""
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * PAGE_BYTES
