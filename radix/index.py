"""The prefix index: which replica holds which block, and for a prompt how much of it each replica holds from the start.

Owns residency in this process, on a path-compressed radix tree: which of the replicas' slots (`slots.py`) hold which
part of each run (`run.py`, `tree.py`). Must never do I/O or read a clock, and never matches a block whose ancestors are
not all held by the same replica.

Invariants (`integrity.py` checks them):
- Only what hangs below the root is matched; orphans do not.
- A run's `full` has the bit of every slot that holds all of it; `part` has no such slot, and no empty mask.
- Somebody holds the last block of every leaf run. Other blocks may be held by nobody while a descendant is: structure,
  so that storing them again makes the chain whole.
- No slot's residency is assumed to be closed under prefixes: `match` intersects holders run by run.

Costs: `match` and the storing of known blocks go by the run; new blocks and removed ones by the block, without an
object of their own. Runs are split where prompts diverge and are not merged again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from radix.run import WHOLE, Run, chosen, common, covered, height, leading, set_part, shared_range, span
from radix.slots import Slots
from radix.tree import ROOT, RunTree


class PrefixIndex:
    """Residency of many replicas. Not safe for use from several threads at once.

    `on_removed`, when given, hears of what `remove` and `clear` take from a replica: its id and the keys, None for all.
    """

    def __init__(self) -> None:
        self.on_removed: Callable[[int, Sequence[int] | None], None] | None = None
        self._slots = Slots()
        self._tree = RunTree()
        self._unheld = 0
        self._swept = 0
        self._removed_near: dict[int, int] = {}

    # Replicas

    def add_replica(self) -> int:
        """A small id for a replica that holds nothing yet."""
        return self._slots.add()

    def retire_replica(self, rid: int) -> None:
        """The replica is gone for `match` at once; its id stays taken until `sweep` has freed all it held."""
        self._slots.retire(rid)

    def clear(self, rid: int) -> None:
        """The replica holds nothing any more, at once; `sweep` frees what it held."""
        if self.on_removed is not None:
            self.on_removed(rid, None)
        self._slots.renew(rid)

    def take_over(self, rid: int, other: int) -> None:
        """`rid` gets all that `other` holds, in place of what it held itself; `other` is retired."""
        self._slots.exchange(rid, other)
        self._slots.retire(other)

    def sweep(self, budget: int) -> bool:
        """Free what gone replicas held, in a slice of `budget` runs. True while more is left."""
        slots = self._slots
        if not slots.retired:
            return False
        for _ in range(min(budget, len(self._tree.runs))):
            self._swept = self._swept + 1 if self._swept + 1 < len(self._tree.runs) else 0
            run = self._tree.runs[self._swept]
            if run is not None:
                self._forget_retired(run)
        slots.release()
        return slots.retired != 0

    # Residency

    def store(self, rid: int, parent: int | None, keys: Sequence[int]) -> None:
        """The replica holds `keys`, each the child of the one before, `parent` that of the first (None: a first block).

        Raises ValueError for an unknown replica or a parent outside 64 bits, OverflowError for such a key.
        """
        self.hold_path(rid, parent, keys)

    def hold_path(self, rid: int, parent: int | None, keys: Sequence[int], *, end_run: bool = False) -> list[int]:
        """As `store`; returns the ids of the runs that hold `keys` now, from the top down.

        With `end_run` the last key ends a run: then each run below the root was stored to its end by each store that
        went through it.
        """
        slot = self._slots.slot(rid)
        if not keys:
            return []
        run, at = self._tree.place(parent, keys)
        path: list[int] = []
        done, count = 0, len(keys)
        while done < count:
            length = len(run.keys)
            if at < length:
                same = common(run, at, keys, done)
                if same:
                    self._hold(run, slot, at, at + same)
                    done += same
                    at += same
                if at < length and (done < count or end_run):
                    run = self._tree.split(run, at)
                if same:
                    path.append(run.id)
                if done == count:
                    break
            child = run.children.get(keys[done]) if run.children is not None else None
            if child is not None:
                run, at = child, 0
                continue
            run, added = self._tree.append(run, self._slots.bits[slot], keys, done)
            self._slots.held[slot] += added
            if not path or path[-1] != run.id:
                path.append(run.id)
            done += added
            at = len(run.keys)
        return path

    def remove(self, rid: int, keys: Sequence[int]) -> None:
        """The replica holds `keys` no more. Those it does not hold are ignored."""
        if self.on_removed is not None:
            self.on_removed(rid, keys)
        slot = self._slots.slot(rid)
        done, count = 0, len(keys)
        # Blocks mostly leave from the end of a prompt upwards, in one call or over many.
        near = self._tree.runs[self._removed_near.get(slot, ROOT)]
        while done < count:
            place = _end_if(near, slot, keys[done]) or self._tree.table.find(keys[done])
            if place is None:
                done += 1
                continue
            run, at = place
            low, high = shared_range(run, at, keys, done)
            done += high - low
            near_id = run.id if low else run.parent
            self._drop(run, slot, low, high)
            near = self._tree.runs[near_id]
            self._removed_near[slot] = near_id

    def release(self, rid: int, run_id: int) -> int | None:
        """The replica holds nothing of that run any more. Returns the id of the run above, None at the top."""
        run = self._tree.runs[run_id]
        if run is None:
            return None
        above = run.parent
        self._drop(run, self._slots.slot(rid), 0, len(run.keys))
        return above or None

    # Questions

    def match(self, keys: Sequence[int]) -> dict[int, int]:
        """For each replica that holds keys[0]: how many of `keys` it holds from there on without a gap."""
        overlaps: dict[int, int] = {}
        alive = self._slots.live
        children = self._tree.root.children
        done, count = 0, len(keys)
        while done < count and children is not None:
            run = children.get(keys[done])
            if run is None:
                break
            chain = run.keys
            after = done + len(chain)
            if after > count or keys[after - 1] != chain[-1]:
                after = done + common(run, 0, keys, done)
            through = alive & run.full
            if through != alive:
                self._part_ways(overlaps, run, alive ^ through, done, after - done)
                alive = through
                if not alive:
                    return overlaps
            children = run.children if after - done == len(chain) else None
            done = after
        if done:
            overlaps.update(dict.fromkeys(self._slots.replicas(alive), done))
        return overlaps

    def blocks(self, rid: int) -> int:
        """How many blocks the replica holds."""
        return self._slots.held[self._slots.slot(rid)]

    def __len__(self) -> int:
        """Distinct blocks that some replica holds; those of gone replicas count until they are swept."""
        return self._tree.known - self._unheld

    def held(self, rid: int) -> Iterator[tuple[int | None, list[int]]]:
        """All that the replica holds, as (parent, keys) to be stored in this order: parents before their children.

        The index must not change before the last is taken.
        """
        slot = self._slots.slot(rid)
        tops: list[tuple[int | None, Run]] = [(None, self._tree.root)]
        tops += [(anchor.key, anchor) for anchor in self._tree.anchors.values()]
        while tops:
            parent, run = tops.pop()
            chain = run.keys
            mask = WHOLE[len(chain)] if run.full >> slot & 1 else (run.part or {}).get(slot, 0)
            at = 0
            while mask >> at:
                rest = mask >> at
                low = at + (rest & -rest).bit_length() - 1
                at = low + leading(mask >> low)
                yield (chain[low - 1] if low else parent), chain[low:at].tolist()
            if run.children is not None:
                last = chain[-1] if chain else parent
                tops.extend((last, child) for child in run.children.values())

    def check_integrity(self) -> None:
        """For tests: raises AssertionError where an invariant is broken."""
        from radix.integrity import check

        check(self)

    # Who holds what

    def _hold(self, run: Run, slot: int, low: int, high: int) -> None:
        """The slot holds blocks low..high-1 of the run."""
        bit = self._slots.bits[slot]
        if run.full & bit:
            return
        count = len(run.keys)
        unheld = 0 if run.full else count - covered(run)
        part = run.part
        before = part.get(slot, 0) if part is not None else 0
        after = before | span(low, high)
        self._slots.held[slot] += (before ^ after).bit_count()
        if after == WHOLE[count]:
            run.full |= bit
            if before:
                set_part(run, slot, 0)
        else:
            set_part(run, slot, after)
        if unheld:
            self._unheld -= unheld - (count - covered(run))

    def _drop(self, run: Run, slot: int, low: int, high: int) -> None:
        """The slot holds blocks low..high-1 of the run no more."""
        slots = self._slots
        bit = slots.bits[slot]
        count = len(run.keys)
        if run.full & bit:
            if high == count and run.full == bit and run.children is None and run.part is None:
                slots.held[slot] -= high - low  # its only holder, from the tail: the usual eviction
                above = self._tree.cut(run, low)
                if above is not None:
                    self._trim(above)
                return
            unheld = 0
            before = WHOLE[count]
        else:
            before = run.part.get(slot, 0) if run.part is not None else 0
            if not before & span(low, high):
                return
            unheld = count - covered(run)
        after = before & ~span(low, high)
        run.full &= ~bit
        set_part(run, slot, after)
        slots.held[slot] -= (before ^ after).bit_count()
        self._unheld += count - covered(run) - unheld
        self._trim(run)

    def _forget_retired(self, run: Run) -> None:
        slots = self._slots
        gone = run.full & slots.retired
        gone_parts = [slot for slot in run.part or () if slots.retired >> slot & 1]
        if not gone and not gone_parts:
            return
        unheld = len(run.keys) - covered(run)
        for slot in chosen(range(len(slots.bits)), gone):
            slots.held[slot] -= len(run.keys)
        run.full ^= gone
        for slot in gone_parts:
            assert run.part is not None
            slots.held[slot] -= run.part[slot].bit_count()
            set_part(run, slot, 0)
        self._unheld += len(run.keys) - covered(run) - unheld
        self._trim(run)

    def _trim(self, run: Run) -> None:
        """Restores: somebody holds the last block of a leaf."""
        leaf: Run | None = run
        while leaf is not None and leaf.children is None and leaf.keys:
            surplus = len(leaf.keys) - height(leaf)
            if not surplus:
                return
            self._unheld -= surplus
            leaf = self._tree.cut(leaf, len(leaf.keys) - surplus)

    def _part_ways(self, overlaps: dict[int, int], run: Run, gone: int, done: int, same: int) -> None:
        """Notes the overlaps of the slots `gone`: all `done` so far, and the lead of their part of the next `same`."""
        slots = self._slots
        if run.part is not None:
            for slot, mask in run.part.items():
                if gone & slots.bits[slot]:
                    overlap = done + min(leading(mask), same)
                    if overlap:
                        overlaps[slots.rids[slot]] = overlap
                    gone ^= slots.bits[slot]
        if done and gone:
            overlaps.update(dict.fromkeys(slots.replicas(gone), done))


def _end_if(run: Run | None, slot: int, key: int) -> tuple[Run, int] | None:
    """The last block that the slot holds in the run, if that is `key`."""
    if run is None or not run.keys:
        return None
    last = (run.part[slot].bit_length() if run.part is not None and slot in run.part else len(run.keys)) - 1
    return (run, last) if run.keys[last] == key else None
