"""Ghosts: the keys of blocks given up, remembered for a while to see whether they would have been of use.

Owns the order in which they are forgotten, and how one is found by its key. A run is given up from its leaf up and
stored anew from its root down, for no block is resident without its parent. So its ghosts are a stack: only the
topmost, the nearest to the root, can be found next, and only that one is listed. The oldest are at the bottom.

Must never decide what is given up, nor fail on two contents of one key: then a ghost is overlooked, no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

from replica.reuse_runs import Run

FEW = 1024


class Ghosts:
    """`len` is how many there are, `tops` the runs that have any, by the key of the topmost."""

    def __init__(self) -> None:
        self._count = 0
        self.tops: dict[int, Run] = {}
        self._queue: deque[tuple[Run, int]] = deque()
        """Who lost blocks, in true order, and how many ghosts the run then had had in all, forgotten ones included."""
        self._sweep_at = FEW

    def __len__(self) -> int:
        return self._count

    @property
    def queued(self) -> int:
        """Entries of the queue by which they are forgotten: no more than twice the runs that have ghosts, and FEW."""
        return len(self._queue)

    def add(self, run: Run, keys: Sequence[int], turns: Iterable[int]) -> None:
        """So many more blocks of the run were given up, from the leaf up, each with its turn below 256."""
        if run.ghosts:
            self._unlist(run)
        run.ghosts.extend(keys)
        run.turns.extend(turns)
        self.tops[keys[-1]] = run
        self._count += len(keys)
        if self._queue and self._queue[-1][0] is run:
            self._queue.pop()
        elif len(self._queue) >= self._sweep_at:
            self._sweep()
        self._queue.append((run, run.forgotten + len(run.ghosts)))

    def take(self, run: Run, keys: Sequence[int], start: int) -> bytearray:
        """The run's ghosts with the keys from `start` on, from the top on, are ghosts no more. Returns their turns."""
        ghosts = run.ghosts
        self._unlist(run)
        count = 0
        for ghost, key in zip(reversed(ghosts), islice(keys, start, None), strict=False):
            if ghost != key:
                break
            count += 1
        turns = run.turns[: -count - 1 : -1]
        del ghosts[-count:]
        del run.turns[-count:]
        self._count -= count
        if ghosts:
            self.tops[ghosts[-1]] = run
        return turns

    def forget(self, room: int) -> list[tuple[Run, int]]:
        """Lets go of the oldest until there are no more than `room`. Returns whose they were, and how many in a row."""
        gone: list[tuple[Run, int]] = []
        queue = self._queue
        while self._count > room:
            run, end = queue[0]
            live = self._live(run, end)
            if live <= self._count - room:
                queue.popleft()
            count = min(live, self._count - room)
            if count > 0:
                self._drop(run, count)
                if gone and gone[-1][0] is run:
                    count += gone.pop()[1]
                gone.append((run, count))
        return gone

    def _live(self, run: Run, end: int) -> int:
        return min(end - run.forgotten, len(run.ghosts))

    def _drop(self, run: Run, count: int) -> None:
        if count == len(run.ghosts):
            self._unlist(run)
        del run.ghosts[:count]
        del run.turns[:count]
        run.forgotten += count
        self._count -= count

    def _unlist(self, run: Run) -> None:
        """Its topmost ghost is found no more."""
        top = run.ghosts[-1]
        if self.tops.get(top) is run:
            del self.tops[top]

    def _sweep(self) -> None:
        """Strikes off the runs whose ghosts were found: they would pile up behind one that never is."""
        self._queue = deque(each for each in self._queue if self._live(*each) > 0)
        self._sweep_at = 2 * len(self._queue) + FEW
