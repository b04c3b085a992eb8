"""Simulated time: a heap of what is due, and a clock that jumps from one to the next.

Owns the order of everything that happens in a simulation. Must never read a real clock.

At equal times, what comes from outside (arrivals, reports, incidents; OUTSIDE) happens before steps end and begin
(STEP), so that requests of one clump meet in one step; otherwise first come, first served.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

OUTSIDE = 0
STEP = 1


class Due:
    """Something that will happen, unless it is cancelled."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class VirtualClock:
    """`now` is in seconds from the start, `happened` counts what has been due so far."""

    def __init__(self) -> None:
        self.now = 0.0
        self.happened = 0
        self._heap: list[tuple[float, int, int, Due]] = []
        self._number = 0

    def at(self, time: float, action: Callable[[], None], rank: int = OUTSIDE) -> Due:
        """`action` is called at `time`. Raises ValueError for a time that is over."""
        if time < self.now:
            raise ValueError(f"it is {self.now:g} s already: nothing can happen at {time:g} s")
        due = Due(action)
        self._number += 1
        heappush(self._heap, (time, rank, self._number, due))
        return due

    def run(self) -> None:
        """Until nothing is due any more."""
        heap = self._heap
        while heap:
            time, _, _, due = heappop(heap)
            if due.action is not None:
                self.now = time
                self.happened += 1
                due.action()
