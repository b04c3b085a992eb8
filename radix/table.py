"""Where a block is: from its key to its run and its position there, at about ten bytes a block.

Owns the hints. A hint is one 64-bit word: the key's top 32 bits, the position in the run (8 bits), the run's id (24
bits). Hints lie in buckets by the key's top bits, unsorted, and a bucket is searched as bytes, at the speed of memory.
Must never be believed unchecked.

Invariants:
- A block of the tree always has a hint that leads to it.
- A hint may lead nowhere (its block has moved or gone): `find` compares the whole key at the place it names. So removal
  costs nothing here; a bucket drops its dead hints when it is full.
- The directory has 2^depth entries; a bucket may be entered several times, side by side: a power of two, aligned.
- The directory has no more entries than a small part of the hints, however the keys are spread.
- No step touches more than one bucket (tens of µs), the doubling of the directory apart (a copy of pointers).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

from radix.run import Run

KEY_BITS = 64
TAG = 0xFFFFFFFF << 32
POSITION_SHIFT = 24
NEXT_POSITION = 1 << POSITION_SHIFT
RUN_MASK = NEXT_POSITION - 1
MAX_RUNS = 1 << POSITION_SHIFT

BUCKET_FULL = 256
BUCKET_LIVE = 160  # a full bucket that keeps more hints than this is split
BUCKET_SPARSE = 16  # the directory is not doubled while its buckets have fewer hints than this on average
CHECK_EVERY = 32
_TAG_AT = 4 if sys.byteorder == "little" else 0


class BlockTable:
    """Hints for the blocks of `runs`, a list by run id that the index owns and the table only reads."""

    def __init__(self, runs: Sequence[Run | None]) -> None:
        self._runs = runs
        self._directory = [array("Q")]
        self._shift = KEY_BITS
        self._hints = 0
        self._dead = 0

    def insert(self, run: Run, start: int) -> None:
        """Hints for the blocks of `run` from index `start` on."""
        directory, shift = self._directory, self._shift
        chain = run.keys[start:] if start else run.keys
        low = (run.base + start) << POSITION_SHIFT | run.id
        for key in chain:
            directory[key >> shift].append(key & TAG | low)
            low += NEXT_POSITION
        self._hints += len(chain)
        # Any bucket is looked at in proportion to what goes into it, so none outgrows its limit for long.
        for key in chain[::CHECK_EVERY]:
            if len(self._directory[key >> self._shift]) > BUCKET_FULL:
                self._relieve(key >> self._shift)

    def forget(self, count: int) -> None:
        """So many blocks have gone or moved: their hints are dead."""
        self._dead += count

    def find(self, key: int) -> tuple[Run, int] | None:
        """The run and the index in it of the block `key`, if the tree has it."""
        if key >> KEY_BITS:
            return None
        bucket = self._directory[key >> self._shift]
        packed = bucket.tobytes()
        tag = (key >> 32).to_bytes(4, sys.byteorder)
        at = packed.find(tag)
        while at >= 0:
            if at & 7 == _TAG_AT:
                hint = bucket[at >> 3]
                run = self._runs[hint & RUN_MASK]
                if run is not None:
                    index = (hint >> POSITION_SHIFT & 0xFF) - run.base
                    chain = run.keys
                    if 0 <= index < len(chain) and chain[index] == key:
                        return run, index
            at = packed.find(tag, at + 1)
        return None

    def bucket(self, key: int) -> array[int]:
        """The hints among which those for `key` are."""
        return self._directory[key >> self._shift]

    def check(self) -> None:
        """For tests: raises AssertionError where an invariant of the buckets is broken."""
        buckets = {id(bucket): bucket for bucket in self._directory}.values()
        assert len(self._directory) == 1 << (KEY_BITS - self._shift)
        assert sum(map(len, buckets)) == self._hints
        for entry, bucket in enumerate(self._directory):
            first, after = self._extent(entry)
            assert (after - first).bit_count() == 1
            assert first % (after - first) == 0
            assert all(first <= hint >> self._shift < after for hint in bucket)

    def _relieve(self, entry: int) -> None:
        """Drop the dead hints of a full bucket if many may be dead; split it if that was not enough."""
        bucket = self._directory[entry]
        if self._dead * 4 > self._hints:
            kept = array("Q", {hint for hint in bucket if self._leads(hint)})
            self._dead = max(0, self._dead - len(bucket) + len(kept))
            self._hints -= len(bucket) - len(kept)
            first, after = self._extent(entry)
            self._directory[first:after] = [kept] * (after - first)
            bucket = kept
        if len(bucket) > BUCKET_LIVE:
            self._split(entry)

    def _split(self, entry: int) -> None:
        bucket = self._directory[entry]
        first, after = self._extent(entry)
        if after - first == 1:
            if len(self._directory) * BUCKET_SPARSE > self._hints:
                return  # these keys are not spread as hashes are; more buckets would stay empty
            self._directory = [bucket for bucket in self._directory for _ in (0, 1)]
            self._shift -= 1
            first, after = 2 * first, 2 * after
        middle = (first + after) // 2
        border = middle << self._shift
        self._directory[first:middle] = [array("Q", [hint for hint in bucket if hint < border])] * (middle - first)
        self._directory[middle:after] = [array("Q", [hint for hint in bucket if hint >= border])] * (after - middle)

    def _extent(self, entry: int) -> tuple[int, int]:
        """The range of directory entries that share this entry's bucket."""
        directory = self._directory
        bucket = directory[entry]
        first, after = entry, entry + 1
        while first and directory[first - 1] is bucket:
            first -= 1
        while after < len(directory) and directory[after] is bucket:
            after += 1
        return first, after

    def _leads(self, hint: int) -> bool:
        run = self._runs[hint & RUN_MASK]
        if run is None:
            return False
        index = (hint >> POSITION_SHIFT & 0xFF) - run.base
        chain = run.keys
        return 0 <= index < len(chain) and (chain[index] ^ hint) >> 32 == 0
