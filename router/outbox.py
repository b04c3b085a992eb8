"""The writes of one turn of the event loop, made together at its end.

A write wakes its reader. While many requests are under way, waking each reader at once interrupts the reading of the
next request, and costs more than the write itself; made together they cost a third less. An idle router loses
nothing: its turns are one event long.

Owns the order of what it was given. Whoever closes a transport, or writes to it directly, flushes first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger("radixgate.outbox")

# More than this does not wait for the end of the turn: a client that does not read is to be noticed within it.
MAX_PENDING = 256 * 1024


class Outbox:
    """One event loop's pending writes."""

    __slots__ = ("_call_soon", "_pending", "_size")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        """`call_soon` is the event loop's: it calls back before the next wait for events."""
        self._call_soon = call_soon
        self._pending: list[tuple[asyncio.Transport, bytes]] = []
        self._size = 0

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        if not self._pending:
            self._call_soon(self.flush)
        self._pending.append((transport, data))
        self._size += len(data)
        if self._size > MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        """Make the pending writes now. What is meant for a closed transport has lost its reader, and is dropped."""
        pending = self._pending
        if pending:
            self._pending = []
            self._size = 0
            for transport, data in pending:
                if not transport.is_closing():
                    try:
                        transport.write(data)
                    except Exception:  # one broken transport must not cost the others their bytes
                        log.exception("a write failed")
                        transport.abort()
