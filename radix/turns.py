"""Long work on an event loop, in slices of about two milliseconds.

Owns when others get their turn. Must never be what a request waits for: only work in the background takes turns.
"""

from __future__ import annotations

import asyncio
import time

SLICE_S = 0.002


class Turns:
    """Call `offer` often: it lets others have their turn when this work has had its own."""

    def __init__(self) -> None:
        self._until = time.perf_counter() + SLICE_S

    async def offer(self) -> None:
        if time.perf_counter() >= self._until:
            await asyncio.sleep(0)
            self._until = time.perf_counter() + SLICE_S
