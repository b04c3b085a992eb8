"""Which resident block is given up when room is needed: the least recently used one, or the one least worth its room.

Owns what eviction knows of each block (its parent, its resident children, when it was last used), the ghosts (keys
remembered for a while after their eviction) and the learned reuse curves. Blocks are told apart by their number.

The worth of a block is its *reuse density*: the hits to be expected a second of keeping it on. It depends on its age
since its last use, on the turns its conversation has had, on the gap between the last two, and on whether it ended a
prompt. For each such kind, hits and time at risk are counted by age, of ghosts too: without them nothing could be
learned of what is given up soon. The density is that of the best moment to stop waiting (Gittins' index), so a block
whose hits come late is not given up for being early.

Must never give up a block in use or one with a resident child, read a clock (time is handed in, in seconds), or draw a
number that the seed does not fix.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from random import Random
from typing import Protocol

from replica.reuse_curves import AGES, Kind, ReuseCurves, age_step

GHOSTS = 8
"""Keys remembered after their eviction, as a multiple of the capacity."""
MEMORY = 32
"""Hits and misses that the curves rest on, as a multiple of the capacity; older ones fade."""
DRAWN = 16
KEPT = 8
"""A victim is the least worthy among so many runs drawn at random and so many good candidates of the draw before."""
TICK_S = 1e-3
"""Each table freed takes so long at least: where all comes at one instant, order stands for time."""
TURNS = 6
GAPS = 4


class Visit:
    """One table's way through the pool. `turn`: turns of its conversation so far; `gap_s`: since the last one."""

    __slots__ = ("gap_s", "left", "ran", "turn")

    def __init__(self) -> None:
        self.turn = 1
        self.gap_s: float | None = None
        self.left: list[tuple[Run, int]] = []
        self.ran = False


class Eviction(Protocol):
    """What the block pool asks and tells. Every path lists blocks from the root on; only resident blocks are named."""

    def used(self, path: Sequence[int], now: float) -> Visit:
        """A table references this resident prefix from now on: none of it can be given up."""

    def ran(self, visit: Visit, now: float) -> None:
        """The table got its room, so the prefix it found counts as hit. Only the first call counts."""

    def stored(self, visit: Visit, block: int, parent: int | None, key: int, now: float) -> None:
        """A block of the table became resident. It is in use."""

    def freed(self, visit: Visit, path: Sequence[int], now: float) -> None:
        """No table references these blocks any more, the last stretch of one path. They can be given up."""

    def victim(self, now: float) -> int:
        """Gives up one block, a leaf that nobody uses. Raises IndexError if there is none."""

    def cleared(self) -> None:
        """Nothing is resident any more, and nothing is in use."""


class LeastRecent:
    """The block that has been free the longest. Children go before parents because they are freed before them."""

    def __init__(self) -> None:
        self._free: OrderedDict[int, None] = OrderedDict()

    def used(self, path: Sequence[int], now: float) -> Visit:
        for block in path:
            self._free.pop(block, None)
        return Visit()

    def ran(self, visit: Visit, now: float) -> None:
        pass

    def stored(self, visit: Visit, block: int, parent: int | None, key: int, now: float) -> None:
        pass

    def freed(self, visit: Visit, path: Sequence[int], now: float) -> None:
        for block in reversed(path):
            self._free[block] = None

    def victim(self, now: float) -> int:
        if not self._free:
            raise IndexError("no block can be given up")
        return self._free.popitem(last=False)[0]

    def cleared(self) -> None:
        self._free.clear()


class Run:
    """Blocks of one path last used at once: all have the same age and kind. `at_risk` of them, ghosts included, wait
    for a hit. `blocks` may hold some that left at the root's end; `place` is its position among the candidates."""

    __slots__ = ("at_risk", "blocks", "gone", "kind", "place", "since")

    def __init__(self, blocks: list[int], kind: Kind, since: float) -> None:
        self.blocks = blocks
        self.kind = kind
        self.since = since
        self.at_risk = len(blocks)
        self.gone = 0
        self.place = -1


class LeastReuse:
    """The leaf of the least reuse density among a few drawn at random, and then the rest of its run from the leaf up.

    `capacity` blocks, numbered from 0. Ghosts and candidates are bounded by a multiple of it.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        self._capacity = capacity
        self._random = Random(seed).random
        self._curves = ReuseCurves(MEMORY * capacity)
        self._unread = 0
        self._begun = 0
        self.cleared()

    def cleared(self) -> None:
        capacity = self._capacity
        self._run: list[Run | None] = [None] * capacity
        self._parent: list[int | None] = [None] * capacity
        self._children = [0] * capacity
        self._turn = [0] * capacity
        self._key = [0] * capacity
        self._ghosts: OrderedDict[int, tuple[Run, int]] = OrderedDict()
        self._runs: dict[Run, None] = {}
        self._candidates: list[Run] = []
        self._good: list[Run] = []
        self._current: Run | None = None

    @property
    def ghosts(self) -> int:
        """Keys remembered after their eviction."""
        return len(self._ghosts)

    @property
    def runs(self) -> int:
        """Runs with a block or a ghost that waits for a hit."""
        return len(self._runs)

    @property
    def hits(self) -> float:
        """Blocks and ghosts that came to be used again, as far as remembered."""
        return self._curves.hits

    def used(self, path: Sequence[int], now: float) -> Visit:
        visit = Visit()
        if path:
            visit.turn = self._turn[path[-1]] + 1
        found: dict[Run, int] = {}
        for block in path:
            run = self._run[block]
            if run is not None:
                found[run] = found.get(run, 0) + 1
                self._run[block] = None
        for run, count in found.items():
            visit.gap_s = now + self._begun * TICK_S - run.since
            run.gone += count
            if run.gone * 2 > len(run.blocks):
                run.blocks = [block for block in run.blocks if self._run[block] is run]
                run.gone = 0
        visit.left = list(found.items())
        return visit

    def ran(self, visit: Visit, now: float) -> None:
        if not visit.ran:
            visit.ran = True
            now += self._begun * TICK_S
            for run, count in visit.left:
                self._end(run, now, True, count)

    def stored(self, visit: Visit, block: int, parent: int | None, key: int, now: float) -> None:
        self._parent[block], self._key[block], self._children[block] = parent, key, 0
        if parent is not None:
            self._children[parent] += 1
        ghost = self._ghosts.pop(key, None)
        if ghost is None:
            self._turn[block] = visit.turn
            return
        run, turn = ghost
        now += self._begun * TICK_S
        self._end(run, now, True)
        self._turn[block] = turn
        if turn >= visit.turn:
            visit.turn = turn + 1
        visit.gap_s = now - run.since

    def freed(self, visit: Visit, path: Sequence[int], now: float) -> None:
        if not visit.ran and visit.left:  # it never got room: nothing happened to these blocks
            last = visit.left[-1][0]
            for run, count in visit.left:
                self._leave(run, count)
            self._begin(path, last.kind, last.since)
            return
        self._begun += 1
        now += self._begun * TICK_S
        turn = min(visit.turn, TURNS)
        gap = gap_class(visit.gap_s) if visit.turn > 2 else 0
        self._begin(path[:-1], (turn, False, gap), now)
        self._begin(path[-1:], (turn, True, gap), now)

    def victim(self, now: float) -> int:
        now += self._begun * TICK_S
        if self._unread >= self._capacity // 2:
            self._refresh(now)
        run = self._current
        if run is None or run.place < 0 or not self._is_ready(run):
            run = self._current = self._choose(now)
        block = run.blocks.pop()
        self._run[block] = None
        parent = self._parent[block]
        if parent is not None:
            self._children[parent] -= 1
            above = self._run[parent]
            if above is not None and not self._children[parent]:
                self._admit(above)
        self._haunt(block, run, now)
        return block

    def _haunt(self, block: int, run: Run, now: float) -> None:
        """Remembers the block's key. Another block of this key cannot be resident, but a ghost of it can be."""
        old = self._ghosts.pop(self._key[block], None)
        self._ghosts[self._key[block]] = (run, self._turn[block])
        if old is None and len(self._ghosts) > GHOSTS * self._capacity:
            old = self._ghosts.popitem(last=False)[1]
        if old is not None:
            self._end(old[0], now, False)

    def _begin(self, path: Sequence[int], kind: Kind, since: float) -> None:
        if not path:
            return
        run = Run(list(path), kind, since)
        for block in path:
            self._run[block] = run
        self._runs[run] = None
        if not self._children[path[-1]]:
            self._admit(run)

    def _end(self, run: Run, now: float, hit: bool, count: int = 1) -> None:
        self._curves.learn(run.kind, now - run.since, hit, count)
        self._unread += count
        self._leave(run, count)

    def _leave(self, run: Run, count: int) -> None:
        run.at_risk -= count
        if not run.at_risk:
            del self._runs[run]
            self._retire(run)

    def _admit(self, run: Run) -> None:
        if run.place < 0:
            run.place = len(self._candidates)
            self._candidates.append(run)

    def _retire(self, run: Run) -> None:
        if run.place >= 0:
            last = self._candidates.pop()
            if last is not run:
                self._candidates[run.place] = last
                last.place = run.place
            run.place = -1

    def _is_ready(self, run: Run) -> bool:
        """Whether its last block is a leaf nobody uses."""
        blocks = run.blocks
        while blocks and self._run[blocks[-1]] is not run:
            blocks.pop()
            run.gone -= 1
        return bool(blocks) and not self._children[blocks[-1]]

    def _choose(self, now: float) -> Run:
        """The least worthy of what is drawn and what was kept of the last draw; among equals the oldest."""
        drawn = {run: None for run in self._good if run.place >= 0 and self._is_ready(run)}
        rounds = 0
        while self._candidates and (rounds < DRAWN or not drawn):
            run = self._candidates[int(self._random() * len(self._candidates))]
            if self._is_ready(run):
                drawn[run] = None
                rounds += 1
            else:
                self._retire(run)
        if not drawn:
            raise IndexError("no block can be given up")
        worth = self._curves.worth
        ranked = sorted(drawn, key=lambda run: (worth(run.kind)[age_step(now - run.since)], run.since))
        self._good = ranked[1 : KEPT + 1]
        return ranked[0]

    def _refresh(self, now: float) -> None:
        self._unread = 0
        waiting: dict[Kind, list[float]] = {}
        for run in self._runs:
            counts = waiting.get(run.kind)
            if counts is None:
                counts = waiting[run.kind] = [0.0] * AGES
            counts[age_step(now - run.since)] += run.at_risk
        self._curves.refresh(waiting)


def gap_class(gap_s: float | None) -> int:
    """0 without a gap, else 1 to GAPS by its logarithm: up to 22 s, 63 s, 180 s, beyond."""
    return 0 if gap_s is None else min(GAPS, max(1, 1 + int((math.log2(gap_s + 1.0) - 3.0) / 1.5)))
