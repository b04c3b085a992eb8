"""What was stamped least recently.

Owns the order of the stamps of one replica's runs, at a third of an OrderedDict's memory. Must never be handed stamps
that run backwards.

Two dicts, each in the order of its stamps: `_old` is only read from its front, and `_new` takes what is stamped; when
`_old` is used up, `_new` takes its place. So every entry of `_old` is older than any of `_new`, and no dict is ever
emptied from its front, which would make each look at the front slower than the last. An entry of `_old` that is stamped
again stays, and is passed over. `_old` never changes size, so one iterator serves it to its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import nan


class Recency:
    """Run ids and their stamps, seconds."""

    __slots__ = ("_front", "_new", "_old", "_oldest")

    def __init__(self) -> None:
        self._old: dict[int, float] = {}
        self._new: dict[int, float] = {}
        self._oldest: tuple[int, float] | None = None
        self._front: Iterator[tuple[int, float]] = iter(())

    def stamp(self, run_ids: Iterable[int], stamp: float) -> None:
        """These were used, in this order."""
        new = self._new
        for run_id in run_ids:
            if run_id in new:
                del new[run_id]
            new[run_id] = stamp

    def __contains__(self, run_id: int) -> bool:
        if run_id in self._new:
            return True
        stamp = self._old.get(run_id, nan)
        return stamp == stamp

    def oldest(self) -> tuple[int, float] | None:
        """The id stamped least recently and its stamp; None when there is none."""
        while self._oldest is None or self._oldest[0] in self._new:
            self._oldest = next(self._front, None)
            if self._oldest is None:
                if not self._new:
                    return None
                self._old, self._new = self._new, {}
                self._front = iter(self._old.items())
        return self._oldest

    def pop_oldest(self) -> int:
        """Raises IndexError when there is none."""
        oldest = self.oldest()
        if oldest is None:
            raise IndexError("nothing is stamped")
        self._oldest = None
        self._old[oldest[0]] = nan  # gone, with the size of the dict unchanged
        return oldest[0]
