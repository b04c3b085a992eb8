"""What replicas probably hold, believed from routing decisions alone.

Owns an index of its own, and when each part of it was last recorded: a replica that was sent a prompt is believed to
hold its blocks until they are `ttl_s` old or pushed out by newer ones. Must never read a clock: `now` is handed in, in
seconds, and never runs backwards.

How least-recently-recorded comes out leaf-first without a walk: a record stamps the runs of its path from the leaf up,
so a run's stamp always comes after those of the runs below it, and the oldest stamp of all is a leaf's. Each path ends
at the end of a run, so what is pushed out is a whole run. A run that was split for another replica's sake has an
unstamped upper part; that part lives as long as the rest below it, unless a record stamps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf

from radix.index import PrefixIndex
from radix.recency import Recency

STAMPS_PER_TTL = 256  # records within this part of the lifetime share a stamp, and its memory
SWEEP_RUNS = 1024


class PredictedResidency:
    """Each replica's last `capacity_blocks` blocks that prompts routed to it went through, no older than `ttl_s`.

    A stamp is up to ttl_s / 256 older than its record, so a block may go that much early.
    """

    def __init__(self, *, capacity_blocks: int, ttl_s: float = inf) -> None:
        self.index = PrefixIndex()
        self._capacity = capacity_blocks
        self._ttl_s = ttl_s
        self._recorded: dict[int, Recency] = {}
        # One entry for each replica that has something recorded; its stamp is no later than the replica's oldest.
        self._due: list[tuple[float, int, int, Recency]] = []
        self._turn = count()
        self._stamp = -inf

    def add_replica(self) -> int:
        """A small id for a replica that is believed to hold nothing yet."""
        rid = self.index.add_replica()
        self._recorded[rid] = Recency()
        return rid

    def retire_replica(self, rid: int) -> None:
        """The replica is gone for `match` at once. Raises ValueError for an id that is not in use."""
        self.index.retire_replica(rid)
        del self._recorded[rid]

    def record(self, rid: int, keys: Sequence[int], now: float) -> None:
        """A prompt of these blocks goes to the replica. Of one longer than its capacity, the start is believed."""
        path = self.index.hold_path(rid, None, keys[: self._capacity], end_run=True)
        if not path:
            return
        recorded = self._recorded[rid]
        stamp = self._shared_stamp(now)
        if recorded.oldest() is None:
            heappush(self._due, (stamp, next(self._turn), rid, recorded))
        recorded.stamp(reversed(path), stamp)
        while self.index.blocks(rid) > self._capacity:
            self._push_out(rid, recorded)

    def forget(self, rid: int, keys: Sequence[int], kept: int) -> None:
        """A prompt just recorded did not get there. Its first `kept` blocks were believed before it, and stay so."""
        self.index.remove(rid, keys[kept : self._capacity][::-1])

    def clear(self, rid: int) -> None:
        """The replica is believed to hold nothing."""
        self.index.clear(rid)
        self._recorded[rid] = Recency()

    def evicted(self, rid: int, keys: Sequence[int]) -> None:
        """The replica is known not to hold these, whatever was recorded."""
        self.index.remove(rid, keys)

    def match(self, keys: Sequence[int], now: float) -> dict[int, int]:
        """For each replica believed to hold keys[0]: how many of `keys` from there on without a gap."""
        if self._due and self._due[0][0] <= now - self._ttl_s:
            self._expire(now - self._ttl_s)
        return self.index.match(keys)

    def expire(self, now: float) -> None:
        """Let go of what is too old, and of a slice of what gone replicas held. To be called now and then."""
        self._expire(now - self._ttl_s)
        self.index.sweep(SWEEP_RUNS)

    def blocks(self, rid: int) -> int:
        """How many blocks the replica is believed to hold."""
        return self.index.blocks(rid)

    def _shared_stamp(self, now: float) -> float:
        if now - self._stamp >= self._ttl_s / STAMPS_PER_TTL:
            self._stamp = now
        return self._stamp

    def _expire(self, limit: float) -> None:
        while self._due and self._due[0][0] <= limit:
            _, turn, rid, recorded = heappop(self._due)
            if self._recorded.get(rid) is not recorded:
                continue  # retired since
            oldest = recorded.oldest()
            while oldest is not None and oldest[1] <= limit:
                self._push_out(rid, recorded)
                oldest = recorded.oldest()
            if oldest is not None:
                heappush(self._due, (oldest[1], turn, rid, recorded))

    def _push_out(self, rid: int, recorded: Recency) -> None:
        run_id: int | None = recorded.pop_oldest()
        while run_id is not None:
            run_id = self.index.release(rid, run_id)
            if run_id is not None and run_id in recorded:
                return
