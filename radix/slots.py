"""Slots: which bit of the index's masks stands for which replica id.

Owns the ids and the slots, and the count of blocks each slot holds. A replica's residency lives in a slot of its own;
to forget it all at once, the replica just gets a fresh slot. Must never hand out a slot, or the id that was retired
with it, before the last block of it is swept.
"""

from __future__ import annotations

from collections.abc import Iterable

from radix.run import chosen

FREE = -1


class Slots:
    """`live` and `retired` are masks over slots, `bits[slot]` is 1 << slot, `held[slot]` counts blocks."""

    def __init__(self) -> None:
        self.live = 0
        self.retired = 0
        self.bits: list[int] = []
        self.held: list[int] = []
        self.rids: list[int] = []
        self._slots: list[int] = []
        self._free: list[int] = []
        self._free_rids: list[int] = []
        self._rid_to_free: dict[int, int] = {}

    def slot(self, rid: int) -> int:
        """Raises ValueError for an id that is not in use."""
        slot = self._slots[rid] if 0 <= rid < len(self._slots) else FREE
        if slot == FREE:
            raise ValueError(f"replica {rid} is not in the index; add_replica() gives an id, retire_replica() ends it")
        return slot

    def replicas(self, mask: int) -> Iterable[int]:
        """The ids whose slots are set in `mask`."""
        if mask & (mask - 1):
            return chosen(self.rids, mask)
        return (self.rids[mask.bit_length() - 1],) if mask else ()

    def add(self) -> int:
        if self._free_rids:
            rid = self._free_rids.pop()
        else:
            rid = len(self._slots)
            self._slots.append(FREE)
        self._open(rid)
        return rid

    def retire(self, rid: int) -> None:
        slot = self.slot(rid)
        self._rid_to_free[slot] = rid
        self._slots[rid] = FREE
        self._close(slot)

    def renew(self, rid: int) -> None:
        """The replica goes on with an empty slot."""
        slot = self.slot(rid)
        self._open(rid)
        self._close(slot)

    def exchange(self, rid: int, other: int) -> None:
        """The two replicas trade residencies."""
        mine, theirs = self.slot(rid), self.slot(other)
        self._slots[rid], self._slots[other] = theirs, mine
        self.rids[mine], self.rids[theirs] = other, rid

    def release(self) -> None:
        """Frees the retired slots that hold nothing any more."""
        for slot in list(chosen(range(len(self.bits)), self.retired)):
            if not self.held[slot]:
                self.retired ^= self.bits[slot]
                self._free.append(slot)
                if slot in self._rid_to_free:
                    self._free_rids.append(self._rid_to_free.pop(slot))

    def _open(self, rid: int) -> None:
        if self._free:
            slot = self._free.pop()
            self.rids[slot] = rid
        else:
            slot = len(self.bits)
            self.bits.append(1 << slot)
            self.held.append(0)
            self.rids.append(rid)
        self._slots[rid] = slot
        self.live |= self.bits[slot]

    def _close(self, slot: int) -> None:
        self.live ^= self.bits[slot]
        self.retired |= self.bits[slot]
        self.release()
