"""Which resident block is given up when room is needed: the one least worth its room.

Owns what eviction knows of each block (its parent, its resident children, when it was last used), the ghosts (keys
remembered for a while after their eviction) and the learned reuse curves. Blocks are told apart by their number.

The worth of a block is its *reuse density*: the hits to be expected a second of keeping it on. It depends on its age
since its last use, on the turns its conversation has had, on the gap between the last two, and on whether it ended a
prompt. For each such kind, hits and time at risk are counted by age, of ghosts too: without them nothing could be
learned of what is given up soon. The density is that of the best moment to stop waiting (Gittins' index), so a block
whose hits come late is not given up for being early. Until as many blocks were given up as there are, and where a duel
(replica/reuse_duel.py) shows that recency finds more, the oldest goes first instead.

The words, in the order in which things happen. A table finds a resident prefix and stores what it computes after it:
that is a *visit*. When it lets go, what nobody else uses becomes two *runs*, the last block and those before it: from
then on they age together. A run whose last block is a leaf is a *candidate*. One block more of a run goes with each
*hit* (a visit finds it, or stores anew what was given up) or *miss* (its ghost is forgotten). The *turn* of a block
is 1 where its visit found nothing, else one more than that of the last block found.

Must never give up a block in use or one with a resident child, read a clock (time is handed in, in seconds), or draw a
number that the seed does not fix.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice, product
from random import Random

from replica.eviction import Eviction, LeastRecent
from replica.reuse_curves import AGES, INNER_EDGES, Kind, ReuseCurves
from replica.reuse_duel import Duel
from replica.reuse_ghosts import Ghosts
from replica.reuse_runs import Run, Visit

EVICTIONS = ("lru", "reuse")
DEFAULT_EVICTION = "reuse"
GHOSTS = 8
"""Keys remembered after their eviction, as a multiple of the capacity."""
MEMORY = 32
"""Hits and misses that the curves rest on, as a multiple of the capacity; older ones fade."""
DRAWN = 16
KEPT = 8
"""A victim is the least worthy among so many runs drawn at random and so many good candidates of the draw before."""
WATCHED = 32768
"""So many runs, spread over all ages, stand for all that wait for a hit: a look at them is a pause of the replica."""
TICK_S = 1e-3
"""Each table freed takes so long at least: where all comes at one instant, order stands for time."""
TURNS = 6
"""Later turns are one kind."""
GAPS = 4
"""Classes of the gap between two turns. It counts from the third turn on: the first of many conversations finds the
prompt that all begin with, and that gap says nothing of its own."""

KINDS: dict[Kind, Kind] = {kind: kind for kind in product(range(1, TURNS + 1), (False, True), range(GAPS + 1))}
"""Each kind once: there are many runs."""


class LeastReuse:
    """The leaf of the least reuse density among a few drawn at random, and then the rest of its run from the leaf up.

    `capacity` blocks, numbered from 0. Ghosts and candidates are bounded by a multiple of it.
    """

    def __init__(self, capacity: int, seed: int | str = 0) -> None:
        self._capacity = capacity
        self._random = Random(seed).random
        self._curves = ReuseCurves(MEMORY * capacity)
        self._duel = Duel(capacity)
        self._unread = 0
        self._begun = 0
        self._unlearned = capacity
        """So many blocks are still given up by recency: curves drawn from a few young spells are worse than that."""
        self.cleared()

    def cleared(self) -> None:
        capacity = self._capacity
        self._run: list[Run | None] = [None] * capacity
        self._parent: list[int | None] = [None] * capacity
        self._children = [0] * capacity
        self._turn = bytearray(capacity)
        self._key = [0] * capacity
        self._ghosts = Ghosts()
        self._runs: dict[Run, None] = {}
        self._candidates: list[Run] = []
        self._good: list[Run] = []
        self._current: Run | None = None
        self._duel.cleared()

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
        if not path:
            return visit
        visit.found = path
        visit.turn = self._turn[path[-1]] + 1
        at, end, of = 0, len(path), self._run
        while at < end:
            run = of[path[at]]
            if run is None:
                at += 1
                continue
            start = at
            while at < end and of[path[at]] is run:
                of[path[at]] = None
                at += 1
            # Whoever uses a block uses those before it, so what is left of a run is its end.
            del run.blocks[: at - start]
            visit.left.append((run, at - start))
            visit.gap_s = now + self._begun * TICK_S - run.since
        return visit

    def ran(self, visit: Visit, now: float) -> None:
        if not visit.ran:
            visit.ran = True
            self._duel.used(map(self._key.__getitem__, visit.found), True)
            now += self._begun * TICK_S
            for run, count in visit.left:
                self._end(run, now, True, count)
            visit.left = []

    def stored(self, visit: Visit, path: Sequence[int], parent: int | None, keys: Sequence[int], now: float) -> None:
        parents, children, key_of = self._parent, self._children, self._key
        if parent is not None:
            children[parent] += 1
        for block, key in zip(path, keys, strict=True):
            parents[block], key_of[block], children[block] = parent, key, 1
            parent = block
        children[path[-1]] = 0
        self._duel.used(keys, False)
        now += self._begun * TICK_S
        for run, count in self._remembered(visit, path, keys):
            visit.gap_s = now - run.since
            self._end(run, now, True, count)

    def _remembered(self, visit: Visit, path: Sequence[int], keys: Sequence[int]) -> list[tuple[Run, int]]:
        """The runs whose ghosts were stored anew, and how many of each. Every block of the path gets its turn."""
        turns, ghosts = self._turn, self._ghosts
        top = ghosts.tops.get
        found: list[tuple[Run, int]] = []
        at, end, turn = 0, len(keys), min(visit.turn, TURNS)
        while at < end:
            run = top(keys[at])
            if run is None:
                turns[path[at]] = turn
                at += 1
                continue
            again = ghosts.take(run, keys, at)
            for block, before in zip(islice(path, at, None), again, strict=False):
                turns[block] = before
            turn = min(TURNS, max(turn, max(again) + 1))
            found.append((run, len(again)))
            at += len(again)
        visit.turn = max(visit.turn, turn)
        return found

    def freed(self, visit: Visit, path: Sequence[int], now: float) -> None:
        if not visit.ran:
            path = self._put_back(visit, path)
            if not path:
                return
        self._begun += 1
        now += self._begun * TICK_S
        turn = min(visit.turn, TURNS)
        gap = gap_class(visit.gap_s) if visit.turn > 2 else 0
        self._begin(path[:-1], KINDS[turn, False, gap], now)
        self._begin(path[-1:], KINDS[turn, True, gap], now)

    def victims(self, count: int, now: float) -> list[int]:
        if self._unread >= self._capacity // 2:
            self._unread = 0
            self._curves.refresh(self.waiting(now))
        now += self._begun * TICK_S
        given_up: list[int] = []
        while len(given_up) < count:
            run = self._current
            if run is None or run.place < 0 or not self._is_ready(run):
                run = self._current = self._choose(now)
            self._peel(run, count, given_up)
        self._unlearned -= count
        self._forget(now)
        return given_up

    def idle(self) -> set[int]:
        return {block for block, run in enumerate(self._run) if run is not None}

    def _peel(self, run: Run, count: int, given_up: list[int]) -> None:
        """Gives up blocks of the run from its leaf up, until there are `count` or the next one is no leaf."""
        blocks, of, children = run.blocks, self._run, self._children
        first, least = len(blocks) - 1, max(0, len(blocks) - (count - len(given_up)))
        while first > least and children[blocks[first - 1]] == 1:
            first -= 1
        peeled = blocks[first:]
        peeled.reverse()
        del blocks[first:]
        for block in peeled:
            of[block] = None
        given_up += peeled
        self._ghosts.add(run, [*map(self._key.__getitem__, peeled)], map(self._turn.__getitem__, peeled))
        parent = self._parent[peeled[-1]]
        if parent is not None:
            children[parent] -= 1
            if not children[parent]:
                above = of[parent]
                if above is not None and above is not run:
                    self._admit(above)

    def _put_back(self, visit: Visit, path: Sequence[int]) -> Sequence[int]:
        """The table never got room: what it took from runs is as old as before. Returns what others let go meanwhile,
        at the root's end of the path."""
        start = len(path)
        for run, count in reversed(visit.left):
            end, start = start, max(0, start - count)
            self._leave(run, count)
            self._begin(path[start:end], run.kind, run.since)
        visit.left = []
        return path[:start]

    def _forget(self, now: float) -> None:
        """Lets go of the oldest ghosts beyond their bound."""
        for run, count in self._ghosts.forget(GHOSTS * self._capacity):
            self._end(run, now, False, count)

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
        """Whether its last block is a leaf."""
        blocks = run.blocks
        return bool(blocks) and not self._children[blocks[-1]]

    def _choose(self, now: float) -> Run:
        """The least worthy of what is drawn and what was kept of the last draw; among equals the oldest."""
        drawn = self._drawn()
        if not drawn:
            raise IndexError("not so many blocks can be given up")
        if self._duel.recent or self._unlearned > 0:
            ranked = [(0.0, run.since, run.place) for run in drawn]
        else:
            worth = self._curves.worth
            edges = INNER_EDGES  # age_step, spelt out
            ranked = [(worth[run.kind][bisect_right(edges, now - run.since)], run.since, run.place) for run in drawn]
        ranked.sort()
        candidates = self._candidates
        self._good = [candidates[place] for _, _, place in ranked[1 : KEPT + 1]]
        return candidates[ranked[0][2]]

    def _drawn(self) -> set[Run]:
        """Candidates to choose from. Any that is found not to be one is struck off."""
        candidates, children, random = self._candidates, self._children, self._random
        drawn = {run for run in self._good if run.place >= 0 and self._is_ready(run)}
        count, rounds = len(candidates), 0
        while count and rounds < DRAWN:
            run = candidates[int(random() * count)]
            blocks = run.blocks
            if blocks and not children[blocks[-1]]:  # _is_ready, spelt out: this is the innermost loop
                drawn.add(run)
                rounds += 1
            else:
                self._retire(run)
                count -= 1
        return drawn

    def waiting(self, now: float) -> dict[Kind, list[float]]:
        """Blocks and ghosts that wait for a hit, by kind and age step."""
        now += self._begun * TICK_S
        waiting: dict[Kind, list[float]] = {}
        one_in = -(-len(self._runs) // WATCHED) or 1
        edges = INNER_EDGES  # age_step, spelt out
        for run in islice(self._runs, 0, None, one_in):
            counts = waiting.get(run.kind)
            if counts is None:
                counts = waiting[run.kind] = [0.0] * AGES
            counts[bisect_right(edges, now - run.since)] += one_in * run.at_risk
        return waiting


def make_eviction(name: str, blocks: int, seed: int | str = 0) -> Eviction:
    """For a pool of so many blocks, by its name in EVICTIONS. Raises ValueError for another name."""
    match name:
        case "lru":
            return LeastRecent()
        case "reuse":
            return LeastReuse(blocks, seed)
        case _:
            raise ValueError(f"{name!r} is not an eviction; use {' or '.join(EVICTIONS)}")


def gap_class(gap_s: float | None) -> int:
    """0 without a gap, else 1 to GAPS by its logarithm: up to 22 s, 63 s, 180 s, beyond."""
    return 0 if gap_s is None else min(GAPS, max(1, 1 + int((math.log2(gap_s + 1.0) - 3.0) / 1.5)))
