"""SIGINT and SIGTERM while a command measures: the first ends the measuring, so that it can be reported; another one,
everything.

Owns both signals from entry to exit. Must never raise where children run, or between a run's end and its report, at the
first signal: what was measured is written, and no child is left behind.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Self, TypeVar

import uvloop

Result = TypeVar("Result")
NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Work that can be left out was not waited for."""


class Interrupts:
    """A context, in the main thread. `number` is the signal that was heard first, None before.

    A signal before `run` ends the command at once, with the exit code 128 + its number. In `run`, the first calls what
    was given to `first`, or else cancels, and later ones cancel. After it, the first makes `check` raise, and only
    another one ends the command.

    The handlers are the interpreter's own, not the loop's: they also hear what comes while the loop is kept waiting, or
    is on its way down, when uvloop would swallow it.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cancel: Callable[[], object] | None = None
        self._first: Callable[[str], object] | None = None
        self._measured = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._hear) for number in NUMBERS}
        return self

    def __exit__(self, *reason: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, measuring: Coroutine[Any, Any, Result]) -> Result:
        """Its result. Raises SystemExit when a signal cancelled it."""
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(self._attended(measuring))
        except asyncio.CancelledError:
            raise SystemExit(128 + (self.number or signal.SIGINT)) from None

    def first(self, stop: Callable[[str], object]) -> None:
        """From now on the first signal calls this in the loop, with its name, instead of cancelling."""
        self._first = stop

    def hear(self, number: int) -> None:
        """As if this signal had come."""
        self._hear(number, None)

    def check(self) -> None:
        """Raises Interrupted when a signal was heard."""
        if self.number is not None:
            raise Interrupted(signal.Signals(self.number).name)

    async def _attended(self, measuring: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.current_task()
        assert task is not None
        self._loop, self._cancel = asyncio.get_running_loop(), task.cancel
        try:
            return await measuring
        finally:
            self._loop, self._measured = None, True

    def _hear(self, number: int, frame: FrameType | None) -> None:
        again = self.number is not None
        self.number = self.number or number
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end, again)
        elif again or not self._measured:
            raise SystemExit(128 + self.number)

    def _end(self, again: bool) -> None:
        """In the loop: a task is not to be touched from between any two steps of it."""
        if self._first is not None and not again and self.number is not None:
            self._first(signal.Signals(self.number).name)
        elif self._cancel is not None:
            self._cancel()
