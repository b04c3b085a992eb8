"""The tree of runs: which block follows which, whoever holds them.

Owns the runs, the orphans' anchors and the table that finds a block by its key. Must never decide who holds a block:
`index.py` does, and tells the tree which blocks to cut.

Invariants (`integrity.py` checks them, with those of the index):
- Below the root hang only whole chains from a prompt's first block on. A block whose parent nobody ever reported hangs
  below an anchor, with its descendants, until the parent is stored.
- A run never outgrows MAX_BLOCKS, its `base` included, and is never empty; an anchor always has children.
- A run keeps its id until it vanishes: a split gives the new id to the upper part.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from radix.fanout import with_child, without_child
from radix.run import MAX_BLOCKS, Anchor, Run, spread_part
from radix.table import MAX_RUNS, BlockTable

ROOT = 0


class RunTree:
    """`runs` is the list of runs by id, `known` counts the blocks of all of them."""

    def __init__(self) -> None:
        self.root = Run(ROOT, ROOT, 0, array("Q"), None, 0, None)
        self.runs: list[Run | None] = [self.root]
        self.table = BlockTable(self.runs)
        self.anchors: dict[int, Anchor] = {}
        self.known = 0
        self._free_ids: list[int] = []

    def place(self, parent: int | None, keys: Sequence[int]) -> tuple[Run, int]:
        """Where the children of `parent` go: a run and an index in it, below an anchor if the parent is unknown."""
        if parent is None:
            return self.root, 0
        place = self.table.find(parent)
        if place is not None:
            return place[0], place[1] + 1
        anchor = self.anchors.get(parent)
        if anchor is None:
            if not 0 <= parent < 1 << 64:
                raise ValueError(f"a block key has 64 bits, the parent {parent} has not")
            array("Q", keys)  # a bad key is refused before anything changes
            anchor = Anchor(self._new_id(), ROOT, 0, array("Q"), None, 0, None, parent)
            self.anchors[parent] = anchor
            self.runs[anchor.id] = anchor
        return anchor, 0

    def append(self, run: Run, full: int, keys: Sequence[int], start: int) -> tuple[Run, int]:
        """New blocks after the end of `run`, for the holders `full`. Returns the run they are in, and how many.

        They are keys[start:], or as many of them as go into one run: `run` itself if it is a leaf of just these
        holders, else a child. The last of them may turn out to have children: orphans that waited for it.
        """
        stop = len(keys)
        if self.anchors:
            stop = next((at + 1 for at in range(start, stop) if keys[at] in self.anchors), stop)
        old = len(run.keys)
        room = MAX_BLOCKS - run.base - old
        if room and run.full == full and run.part is None and run.children is None:
            stop = min(stop, start + room)
            run.keys.extend(array("Q", keys[start:stop]))
        else:
            old = 0
            stop = min(stop, start + MAX_BLOCKS)
            run = self._new_run(run, array("Q", keys[start:stop]), full)
        added = stop - start
        self.table.insert(run, old)
        self.known += added
        if keys[stop - 1] in self.anchors:
            self._attach(self.anchors[keys[stop - 1]], run)
        return run, added

    def split(self, run: Run, at: int) -> Run:
        """Makes the first `at` blocks a run of their own, and returns it. `run` keeps its id and the rest."""
        upper = Run(self._new_id(), run.parent, run.base, run.keys[:at], None, run.full, None)
        self.runs[upper.id] = upper
        above = self._run(run.parent)
        assert above.children is not None
        above.children[upper.keys[0]] = upper
        run.keys = run.keys[at:]
        run.parent = upper.id
        run.base += at
        upper.children = {run.keys[0]: run}
        if run.part is not None:
            part = run.part
            spread_part(upper, part, 0)
            spread_part(run, part, at)
        self.table.insert(upper, 0)
        self.table.forget(at)
        return upper

    def cut(self, run: Run, top: int) -> Run | None:
        """Blocks from index `top` on vanish from a leaf. Returns the run above if the whole run has."""
        surplus = len(run.keys) - top
        self.known -= surplus
        self.table.forget(surplus)
        if top:
            del run.keys[top:]
            if run.part is not None:
                spread_part(run, run.part, 0)
            return None
        above = self._run(run.parent)
        assert above.children is not None
        above.children = without_child(above.children, run.keys[0])
        self.runs[run.id] = None
        self._free_ids.append(run.id)
        if above.children is None and isinstance(above, Anchor):
            self._discard_anchor(above)
        return above

    def _new_run(self, above: Run, chain: array[int], full: int) -> Run:
        run = Run(self._new_id(), above.id, 0, chain, None, full, None)
        self.runs[run.id] = run
        above.children = with_child(above.children, chain[0], run)
        return run

    def _new_id(self) -> int:
        if self._free_ids:
            return self._free_ids.pop()
        if len(self.runs) >= MAX_RUNS:
            raise MemoryError(f"the prefix index is full: it cannot have more than {MAX_RUNS} runs")
        self.runs.append(None)
        return len(self.runs) - 1

    def _attach(self, anchor: Anchor, run: Run) -> None:
        """The block that the orphans waited for is the last of `run`."""
        top = run
        while top.parent != ROOT:
            top = self._run(top.parent)
        if top is anchor:
            return  # by its own account the block descends from itself: nonsense, and it stays an orphan
        assert anchor.children is not None
        run.children = anchor.children
        for child in run.children.values():
            child.parent = run.id
        anchor.children = None
        self._discard_anchor(anchor)

    def _discard_anchor(self, anchor: Anchor) -> None:
        del self.anchors[anchor.key]
        self.runs[anchor.id] = None
        self._free_ids.append(anchor.id)

    def _run(self, run_id: int) -> Run:
        run = self.runs[run_id]
        assert run is not None
        return run
