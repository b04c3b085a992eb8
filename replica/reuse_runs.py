"""What eviction by reuse remembers of each use: the run of blocks that a table let go of, and what a table found.

Owns the form of both. Must never decide anything.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from replica.reuse_curves import Kind


class Run:
    """Blocks of one path last used at once, `since` when, in seconds: all have the same age and kind.

    `at_risk` of them, ghosts included, wait for a hit. `blocks` are the resident ones nobody uses, from the root on.
    `place` is the run's position among the candidates, -1 if it is none. `ghosts` are the keys of those given up, from
    the leaf up, each with its turn in `turns`; `forgotten` of them, the first, are no longer there.
    """

    __slots__ = ("at_risk", "blocks", "forgotten", "ghosts", "kind", "place", "since", "turns")

    def __init__(self, blocks: list[int], kind: Kind, since: float) -> None:
        self.blocks = blocks
        self.kind = kind
        self.since = since
        self.at_risk = len(blocks)
        self.place = -1
        self.ghosts = array("Q")
        self.turns = bytearray()
        self.forgotten = 0


class Visit:
    """One table's way through the pool: the blocks it `found`, whether it got its room and `ran`, until then the runs
    they `left` and how many of each, the turns of its conversation so far, and the gap since the last one.
    """

    __slots__ = ("found", "gap_s", "left", "ran", "turn")

    def __init__(self) -> None:
        self.turn = 1
        self.gap_s: float | None = None
        self.left: list[tuple[Run, int]] = []
        self.ran = False
        self.found: Sequence[int] = ()
