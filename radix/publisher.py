"""Keeps what Redis says of one replica equal to what the replica holds.

Owns the order of what is said: the registration, the whole block list where one is wanted, then the batches one at a
time from the one that is due, and the renewals of the lease. Redis says which batch is due; nothing is remembered here
that could be wrong about it. Must never keep batches of its own (while Redis is away they gather in the source, which
is bounded), and never give up: whatever fails is tried again, after longer and longer pauses.

Several publishers may speak for one replica, as when it reports to several routers: whoever comes second finds its
batch applied, and follows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from redis import exceptions

from radix.events import EventBatch, Registration, Snapshot
from radix.feed import Outcome
from radix.redis_link import UNAVAILABLE, explain
from radix.redis_tree import RESTORE, RedisTree, Superseded
from radix.tasks import end_tasks

log = logging.getLogger(__name__)

PAUSES_S = (0.1, 2.0)
GOODBYE_S = 2.0
_NEVER = -2  # no batch has this number
_REGISTERED = "registered"
_AWAY = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)

Result = TypeVar("Result")


class Batches(Protocol):
    """Where a replica's batches come from. replica/journal.py's Journal is one."""

    def batch(self, seq: int) -> EventBatch | None:
        """Batch `seq`; the newest one if `seq` is no longer kept; None if there is nothing from `seq` on."""

    def subscribe(self) -> asyncio.Event:
        """An event that is set whenever there is more to read; the reader clears it."""

    def unsubscribe(self, news: asyncio.Event) -> None: ...


class _OutOfStep(Exception):
    """Redis is to be asked again where it stands."""


class _NoBlockList(Exception):
    """The replica's block list could not be had."""


class Publisher:
    """Reports one replica to one Redis: `run` as a task, `end_tasks` on it, then `goodbye`.

    `account` gives the replica's current account of itself, `snapshot` its block list; that may fail, and is asked
    again. `connected`: Redis has the registration and has answered since. `pauses_s`: the first and the longest pause
    before something is tried again.
    """

    def __init__(
        self,
        tree: RedisTree,
        batches: Batches,
        account: Callable[[], Registration],
        snapshot: Callable[[], Awaitable[Snapshot]],
        *,
        pauses_s: tuple[float, float] = PAUSES_S,
    ) -> None:
        self.connected = False
        self._tree = tree
        self._batches = batches
        self._account = account
        self._snapshot = snapshot
        self._first_pause_s, self._longest_pause_s = pauses_s
        self._pause_s = 0.0
        self._said: set[object] = set()
        self._doubted = self._vouched = _NEVER

    async def run(self) -> None:
        """Registers and reports for ever."""
        news = self._batches.subscribe()
        try:
            while True:
                await self._round(news)
        finally:
            self.connected = False
            self._batches.unsubscribe(news)

    async def goodbye(self) -> None:
        """Tells Redis that the replica leaves, so that nobody need wait for the lease to end. Takes 2 s at most."""
        said = self._account()
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self._tree.leave(said.name, said.epoch)
        except Exception as error:
            log.warning("%s: could not say goodbye (%s); the lease will end", self._way(), explain(error))

    async def _round(self, news: asyncio.Event) -> None:
        """From one registration to the next."""
        try:
            due = await self._register()
            if due != RESTORE:
                await self._look_ahead(due)
            await self._report(RESTORE if self._gone(due) else due, news)
            self._pause_s = 0.0
            self._said &= {_REGISTERED}
        except _OutOfStep:
            # At once; but if that leads nowhere, ever slower.
            await asyncio.sleep(self._pause_s)
            self._lengthen_pause()
        except Superseded:
            self._now_superseded()
            await asyncio.sleep(self._account().lease_s)
        except Exception as error:
            self._now_failed(error)
            self._lengthen_pause()
            await asyncio.sleep(self._pause_s)

    async def _register(self) -> int:
        """The number of the batch that is due, or RESTORE."""
        due = await self._tree.register(self._account())
        self.connected = True
        self._say(_REGISTERED, logging.INFO, "registered")
        return due

    async def _report(self, due: int, news: asyncio.Event) -> None:
        """Reports from batch `due` on, until the lease is to be renewed."""
        loop = asyncio.get_running_loop()
        renewal = loop.time() + self._renewal_s()
        while (left := renewal - loop.time()) > 0:
            if due == RESTORE:
                due = await self._renewing(self._restore())
            news.clear()
            batch = self._batches.batch(due)
            if batch is None:
                await _heard(news, left)
            elif batch.seq != due:
                raise _OutOfStep  # Redis may have it from another publisher; if not, it will want the block list
            else:
                due = await self._apply(batch)

    async def _apply(self, batch: EventBatch) -> int:
        """The number of the batch that is due next, or RESTORE."""
        try:
            applied = await self._tree.apply(batch)
        except ValueError as error:
            self._say(ValueError, logging.ERROR, f"batch {batch.seq} cannot be applied: {error}; handing in all blocks")
            return RESTORE
        if applied.outcome is Outcome.STALE:
            raise Superseded
        if applied.outcome is Outcome.UNKNOWN:
            raise _OutOfStep
        return applied.next_seq

    async def _restore(self) -> int:
        """Hands in the block list; the number of the batch that follows it."""
        snapshot = await self._block_list()
        outcome = await self._tree.restore(snapshot)
        if outcome is not Outcome.APPLIED:
            raise _OutOfStep
        blocks = sum(len(chain.packed) for chain in snapshot.stored) // 8
        log.info("%s: handed in all blocks, %d before batch %d", self._way(), blocks, snapshot.seq)
        return snapshot.seq

    async def _block_list(self) -> Snapshot:
        try:
            return await self._snapshot()
        except Exception as error:
            raise _NoBlockList("its block list could not be had") from error

    def _gone(self, due: int) -> bool:
        """Whether the source no longer keeps batch `due`."""
        batch = self._batches.batch(due) if due != RESTORE else None
        return batch is not None and batch.seq != due

    async def _look_ahead(self, due: int) -> None:
        """Finds a replica that counts its batches from 0 again under the same epoch, all of which Redis would take for
        duplicates. Redis then forgets what it knew, and _OutOfStep is raised.

        Mostly it is innocent that Redis is ahead of the source: another publisher was quicker. So it is looked into
        only if the source has not caught up by the next renewal, and once.
        """
        knows_of_it = due == 0 or self._batches.batch(due - 1) is not None
        if knows_of_it or due == self._vouched or self._batches.batch(0) is None:
            return
        if due != self._doubted:
            self._doubted = due
            return
        said = self._account()
        snapshot = await self._renewing(self._block_list())
        if (snapshot.epoch, snapshot.seq) >= (said.epoch, due):
            self._vouched = due
            return
        log.error("%s: its batches began anew without a new epoch; handing in all blocks", self._way())
        await self._tree.leave(said.name, said.epoch, "its batches began anew")
        raise _OutOfStep

    async def _renewing(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Does what may take longer than the lease lasts, and renews it meanwhile."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=self._renewal_s())
                if not task.done():
                    await self._register()
            return task.result()
        finally:
            await end_tasks(task)

    def _renewal_s(self) -> float:
        return max(self._account().lease_s / 3, 0.01)

    def _lengthen_pause(self) -> None:
        self._pause_s = min(max(2 * self._pause_s, self._first_pause_s), self._longest_pause_s)

    def _now_superseded(self) -> None:
        self.connected = False
        words = (
            "a replica of this name that started later is there; this one is left out until that one ends. If both are "
            "meant, give each a name of its own (--name)"
        )
        self._say(Superseded, logging.ERROR, words)

    def _now_failed(self, error: Exception) -> None:
        words = f"cannot report: {explain(error)}; trying again"
        if isinstance(error, _NoBlockList):
            self._say(_NoBlockList, logging.WARNING, words)
            return
        self.connected = False
        if isinstance(error, _AWAY) and not isinstance(error, exceptions.AuthenticationError):
            self._say(_AWAY, logging.WARNING, words)
        else:
            known = isinstance(error, (*UNAVAILABLE, exceptions.RedisError))
            self._say(type(error), logging.ERROR, words, None if known else error)

    def _say(self, kind: object, level: int, words: str, error: Exception | None = None) -> None:
        """Logs it, once until all has gone well for a while."""
        if kind not in self._said:
            self._said.add(kind)
            self._said -= {_REGISTERED} - {kind}
            log.log(level, "%s: %s", self._way(), words, exc_info=error)

    def _way(self) -> str:
        return f"replica {self._account().name} at {self._tree.link.shown}"


async def _heard(news: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await news.wait()
    except TimeoutError:
        pass
