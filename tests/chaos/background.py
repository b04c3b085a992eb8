"""An event loop in a thread of its own, for what must go on while a test waits: clients and proxies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

WAIT_S = 60.0  # for a call to return; none of them waits for a fault to end

Result = TypeVar("Result")


class Background:
    """A context; everything that is started in it must be ended in it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="background")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def call(self, work: Coroutine[Any, Any, Result], wait_s: float = WAIT_S) -> Result:
        """Runs it there and waits for its end."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(wait_s)
