"""Tells the fleet that this replica is there, and what happens to its blocks.

Owns one task for each router (`--join`) and for each Redis (`--report`) that is told, and the goodbyes at the end. Must
never slow the engine down: each task reads the journal at its own pace. Must never load the Redis client unless there
is a Redis to report to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import aiohttp

from radix.events import Registration, Snapshot
from radix.tasks import end_tasks
from replica.journal import Journal
from replica.router_link import TIMEOUT, RouterLink

if TYPE_CHECKING:
    from radix.publisher import Publisher
    from radix.redis_link import RedisLink

log = logging.getLogger(__name__)

_CLOSE_S = 1.0


class Report(Protocol):
    """One that is told."""

    async def run(self) -> None:
        """Registers and reports for ever; whatever fails is tried again."""

    async def goodbye(self) -> None:
        """Takes leave, within 2 s, once `run` has been cancelled."""


class Reporter:
    """Reports to the control addresses of routers and to the Redis URLs in `reports`.

    `account` gives the replica's current account of itself, `snapshot` its block list, between two of the journal's
    batches.
    """

    def __init__(
        self,
        journal: Journal,
        account: Callable[[], Registration],
        snapshot: Callable[[], Snapshot],
        *,
        controls: Sequence[str] = (),
        reports: Sequence[str] = (),
    ) -> None:
        self._journal = journal
        self._account = account
        self._snapshot = snapshot
        self._controls = controls
        self._urls = reports
        self._reports: list[Report] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None
        self._redis: list[RedisLink] = []

    def start(self) -> None:
        """Call it once the replica can be reached at the address in its account. Raises RedisUrlError."""
        self._reports = [*map(self._to_router, self._controls), *map(self._to_redis, self._urls)]
        self._tasks = [asyncio.create_task(report.run(), name="report") for report in self._reports]

    async def stop(self) -> None:
        """Ends the reports and takes leave of everyone who can be reached shortly. May be called twice."""
        await end_tasks(*self._tasks)
        self._tasks = []
        await asyncio.gather(*(report.goodbye() for report in self._reports))
        self._reports = []
        await self._close()

    def _to_router(self, control: str) -> RouterLink:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=TIMEOUT)
        return RouterLink(control, self._session, self._journal, self._account)

    def _to_redis(self, url: str) -> Publisher:
        from radix.publisher import Publisher
        from radix.redis_link import open_link
        from radix.redis_tree import RedisTree

        link = open_link(url)
        self._redis.append(link)
        return Publisher(RedisTree(link), self._journal, self._account, self._block_list)

    async def _block_list(self) -> Snapshot:
        return self._snapshot()

    async def _close(self) -> None:
        if self._session is not None:
            await self._session.close()
        links, self._redis = self._redis, []
        for link in links:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await link.close()
            except Exception as error:
                log.debug("closing the connections to %s: %s", link.shown, error)
