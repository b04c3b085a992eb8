"""Checks every invariant of the prefix index, for tests.

Owns nothing. Must never be called in service: it visits every block.
"""

from __future__ import annotations

from radix.index import PrefixIndex
from radix.run import MAX_BLOCKS, WHOLE, Anchor, Run, covered, height
from radix.tree import ROOT


def check(index: PrefixIndex) -> None:
    """Raises AssertionError where an invariant is broken."""
    runs = [run for run in index._tree.runs if run is not None]
    for run in runs:
        assert index._tree.runs[run.id] is run
        _check_place(index, run)
        if run.keys:
            _check_holders(index, run)
            _check_hints(index, run)
    _check_counts(index, runs)
    _check_ids(index)


def _check_place(index: PrefixIndex, run: Run) -> None:
    if isinstance(run, Anchor):
        assert index._tree.anchors[run.key] is run
        assert run.children is not None
        assert not run.keys
    elif run.id != ROOT:
        assert run.keys
        above = index._tree.runs[run.parent]
        assert above is not None
        assert above.children is not None
        assert above.children.get(run.keys[0]) is run
        _check_descent(index, run)
    assert run.base + len(run.keys) <= MAX_BLOCKS
    for child in run.children.values() if run.children is not None else ():
        assert index._tree.runs[child.id] is child
        assert child.parent == run.id
    assert run.children is None or len(run.children)


def _check_descent(index: PrefixIndex, run: Run) -> None:
    seen = set()
    top: Run | None = run
    while top is not None and top.parent != ROOT:
        assert top.id not in seen, "a run descends from itself"
        seen.add(top.id)
        top = index._tree.runs[top.parent]
    assert top is not None


def _check_holders(index: PrefixIndex, run: Run) -> None:
    slots = index._slots
    used = slots.live | slots.retired
    whole = WHOLE[len(run.keys)]
    assert run.full & ~used == 0
    assert run.part is None or run.part
    for slot, mask in (run.part or {}).items():
        assert used >> slot & 1
        assert not run.full >> slot & 1
        assert 0 < mask < whole
    assert run.children is not None or height(run) == len(run.keys), "nobody holds the last block of a leaf"


def _check_hints(index: PrefixIndex, run: Run) -> None:
    for at, key in enumerate(run.keys):
        place = index._tree.table.find(key)
        assert place is not None
        assert place[0].keys[place[1]] == key
        hint = key >> 32 << 32 | (run.base + at) << 24 | run.id
        assert hint in index._tree.table.bucket(key)


def _check_counts(index: PrefixIndex, runs: list[Run]) -> None:
    slots = index._slots
    assert index._tree.known == sum(len(run.keys) for run in runs)
    assert len(index) == sum(covered(run) for run in runs)
    for slot, held in enumerate(slots.held):
        blocks = sum(len(run.keys) for run in runs if run.full >> slot & 1)
        assert held == blocks + sum((run.part or {}).get(slot, 0).bit_count() for run in runs)
    index._tree.table.check()


def _check_ids(index: PrefixIndex) -> None:
    free = index._tree._free_ids
    assert sorted(free) == [at for at, run in enumerate(index._tree.runs) if run is None]
    slots = index._slots
    assert slots.live & slots.retired == 0
    for rid, slot in enumerate(slots._slots):
        if slot >= 0:
            assert slots.live >> slot & 1
            assert slots.rids[slot] == rid
