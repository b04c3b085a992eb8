"""Keeps a prefix index equal to the tree in Redis.

Owns one reader of the log, what it knows of the fleet's members, and which id each slot of the tree has in the index.
Must never write to Redis, and never forget on its own what it knows: while Redis is away, or being read anew, the index
answers from what was known before.

A mirror begins with a snapshot: the log's newest position, then all nodes, read in many slices while they change. From
that position on it follows the log; every entry sets something to what it is, so replaying what a slice already held
does no harm. Each entry names the one before it: when that is not the entry read last, something was missed (the log is
bounded) or Redis has another past (it was wiped, or restored from a backup), and the mirror begins anew.

A member that Redis does not know after such a beginning is kept for a while in which Redis can be reached: a wiped
Redis learns of it again from the replica itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from radix.chains import Pairs
from radix.index import PrefixIndex
from radix.members import Member, Members, Unexplained
from radix.redis_link import UNAVAILABLE, explain
from radix.redis_tree import RedisTree
from radix.tree_log import Entry, unpack_marks
from radix.turns import Turns

log = logging.getLogger("radixgate.mirror")

READ_ENTRIES = 128
IDLE_MS = 1000
PAUSE_S = (0.05, 1.0)  # between tries while Redis is away


class LogGap(Exception):
    """The log does not continue where the mirror stopped reading."""


class Mirror:
    """`run` is its one task; all else may be read at any time.

    `current`: in step with Redis; `current_since` (by `clock`): since when without interruption. `lag_s`: how old the
    newest change was when it arrived. `resyncs` counts beginnings after the first, `batches` the entries applied,
    `malformed` those that made no sense.
    """

    def __init__(self, tree: RedisTree, index: PrefixIndex, clock: Callable[[], float]) -> None:
        self.index = index
        self.current = False
        self.current_since = 0.0
        self.lag_s = 0.0
        self.resyncs = 0
        self.batches = 0
        self.malformed = 0
        self._tree = tree
        self._clock = clock
        self._members = Members(index)
        self._position: bytes | None = None
        self._skew_s = 0.0  # this machine's clock less that of Redis
        self._away_since: float | None = None

    @property
    def members(self) -> dict[str, Member]:
        """The fleet's members by name."""
        return self._members.by_name

    def subscribe(self, listener: Callable[[Member], None]) -> None:
        """`listener` hears of each member that joined or registered anew, and of each that is not in `members` now."""
        self._members.subscribe(listener)

    async def run(self) -> None:
        """Follow Redis for ever."""
        pause = PAUSE_S[0]
        while True:
            try:
                if self._position is None:
                    await self._begin()
                await self._catch_up()
                pause = PAUSE_S[0]
                while True:
                    await self._follow(IDLE_MS)
            except (LogGap, Unexplained) as gap:
                log.warning("reading the tree anew: %s", gap)
                self._lost()
            except UNAVAILABLE as error:
                self._away(error)
            except RedisError as error:  # such as missing rights: for a person to mend
                self._away(error)
            except Exception:
                log.exception("the mirror stumbled; reading the tree anew")
                self._lost()
                pause = PAUSE_S[1]
            self.current = False
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_S[1])

    async def _begin(self) -> None:
        """Load everything under fresh ids, then let it take the place of what was known."""
        position, redis_s, incarnations = await self._tree.open()
        self._skew_s = time.time() - redis_s
        turns = Turns()
        heaps = await self._heaps(turns)
        rids = {slot: self.index.add_replica() for slot in frozenset().union(*heaps)}
        try:
            # What many hold comes before what few do: mostly it is the beginning of that.
            for holders in sorted(heaps, key=len, reverse=True):
                await heaps.pop(holders).store(self.index, [rids[slot] for slot in holders], turns)
        except BaseException:
            for rid in rids.values():
                self.index.retire_replica(rid)
            raise
        self._members.replace(incarnations, rids, self._clock())
        self._position = position

    async def _heaps(self, turns: Turns) -> dict[frozenset[int], Pairs]:
        """All nodes, by the slots that hold them."""
        used = await self._tree.slots()
        heaps: dict[frozenset[int], Pairs] = {}
        nodes = await self._tree.nodes()
        while nodes:
            marks, pairs = nodes.popitem()
            holders = used.intersection(unpack_marks(marks))
            if holders:
                heaps.setdefault(frozenset(holders), Pairs()).add(pairs)
            await turns.offer()
        return heaps

    async def _catch_up(self) -> None:
        """Read to the end of the log. Raises LogGap."""
        while await self._follow(None):
            pass
        self._in_step()

    async def _follow(self, wait_ms: int | None) -> bool:
        """Read on and apply; True when there may be more at once. Raises LogGap and Unexplained."""
        assert self._position is not None
        entries = await self._tree.read_log(self._position, READ_ENTRIES, wait_ms)
        turns = Turns()
        for entry in entries:
            self._take(entry)
            await turns.offer()
        if entries:
            self.lag_s = max(time.time() - self._skew_s - entries[-1].at, 0.0)
        else:
            await self._check_past()
        if self.current:
            self._members.drop_missing(self._clock())
        return len(entries) == READ_ENTRIES

    def _take(self, entry: Entry) -> None:
        if entry.after != self._position:
            raise LogGap(f"the log goes on after {entry.after!r}, but what was read last is {self._position!r}")
        self._position = entry.id
        self.batches += 1
        try:
            self._members.apply(entry.change)
        except (ValueError, OverflowError) as error:
            if not self.malformed:
                log.warning("a change in the log of %s cannot be followed: %s", self._tree.link.shown, error)
            self.malformed += 1

    async def _check_past(self) -> None:
        """Silence may mean that Redis came back with another past, in which nothing follows our position."""
        assert self._position is not None
        if await self._tree.last() != self._position and not await self._tree.read_log(self._position, 1):
            raise LogGap(f"the log does not know {self._position!r}")

    def _in_step(self) -> None:
        self.current = True
        self.current_since = self._clock()
        if self._away_since is not None:
            self._members.put_off(self.current_since - self._away_since)
            self._away_since = None
        log.info("in step with Redis at %s: %d members", self._tree.link.shown, len(self.members))

    def _away(self, error: BaseException) -> None:
        if self._away_since is None:
            self._away_since = self._clock()
            log.warning("no Redis at %s, going on from memory: %s", self._tree.link.shown, explain(error))

    def _lost(self) -> None:
        self._position = None
        self.resyncs += 1
