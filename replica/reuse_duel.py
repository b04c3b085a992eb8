"""Whether eviction by recency would find more than eviction by reuse does: a duel on a sample of the block keys.

Owns the shadow: a least-recently-used cache that holds nothing but the sampled keys, as much smaller as they are fewer.
It sees the same uses as the block pool, so both are compared block by block. Where reuse has nothing to learn its
curves are noise, and recency does a little better; then it is followed for a while, each time for longer. Must never
look at a clock, nor draw a number: the same uses lead to the same answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

SAMPLE = 16
"""One key in so many is in the duel; in a small pool, more of them."""
SHADOW = 1024
"""The shadow of a pool holds so many keys at least, or all: with fewer, chance decides."""
WINDOW = 8
"""The latest uses count, so many times as many as the pool has blocks; half of them are enough to judge by."""
MARGIN = 0.01
"""Recency is followed when it finds this share of all blocks more."""
REST = 0.5
LONGEST_REST = 64
"""Recency is followed for so many windows; twice as many, up to LONGEST_REST, if reuse then fails again."""


class Duel:
    """For a pool of `capacity` blocks. `recent`: whether recency is to be followed now."""

    def __init__(self, capacity: int) -> None:
        self.recent = False
        self._one_in = max(1, min(SAMPLE, capacity // SHADOW))
        self._room = max(1, capacity // self._one_in)
        self._window = WINDOW * self._room
        self._rest = REST
        self._resting = 0.0
        self._uses = 0.0
        self._ahead = 0.0
        self._shadow: OrderedDict[int, None] = OrderedDict()

    def cleared(self) -> None:
        """The pool is empty."""
        self._shadow.clear()

    def used(self, keys: Iterable[int], found: bool) -> None:
        """Blocks of these keys were used, and the pool had found them, or not."""
        one_in, shadow = self._one_in, self._shadow
        sample = [key for key in keys if not key % one_in]
        uses, had = len(sample), 0
        for key in sample:
            if key in shadow:
                had += 1
                shadow.move_to_end(key)
            else:
                shadow[key] = None
                if len(shadow) > self._room:
                    shadow.popitem(last=False)
        if uses:
            self._judge(uses, had - uses if found else had)

    def _judge(self, uses: int, ahead: int) -> None:
        if self.recent:
            self._resting -= uses
            if self._resting <= 0:
                self.recent = False
                self._uses = self._ahead = 0.0
            return
        kept = max(0.0, 1.0 - uses / self._window)
        self._uses = self._uses * kept + uses
        self._ahead = self._ahead * kept + ahead
        if self._uses < self._window / 2:
            return
        if self._ahead > MARGIN * self._uses:
            self.recent = True
            self._resting = self._rest * self._window
            self._rest = min(2 * self._rest, LONGEST_REST)
        elif self._ahead < -MARGIN * self._uses:
            self._rest = REST
