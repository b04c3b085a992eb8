"""One incarnation that reports to this router's control port, and its way into Redis.

Owns its lease here, its inbox and its publisher. Must never end the incarnation by itself: the replica may be reporting
through other routers, too.
"""

from __future__ import annotations

import asyncio

import aiohttp

from radix.events import EventBatch, Registration, Snapshot
from radix.publisher import Publisher
from radix.redis_tree import RedisTree
from radix.tasks import end_tasks
from router.inbox import Inbox
from router.joins import fetch_block_list
from router.telemetry import Telemetry

PATIENCE_S = 1.0  # how long an answer is held back while Redis takes less than what is reported


class Inlet:
    """Publishes from its making until `stop`. `said` is the latest registration, `lease_until` when it runs out."""

    def __init__(
        self, said: Registration, lease_until: float, tree: RedisTree, http: aiohttp.ClientSession, telemetry: Telemetry
    ) -> None:
        self.said = said
        self.lease_until = lease_until
        self._http = http
        self._telemetry = telemetry
        self._inbox = Inbox()
        self._publisher = Publisher(tree, self._inbox, lambda: self.said, self._block_list)
        self._task = asyncio.get_running_loop().create_task(self._publisher.run(), name=f"publish {said.name}")

    async def take(self, batch: EventBatch) -> None:
        """Queue it; while Redis is there but slow, return a little later."""
        self._inbox.put(batch)
        if self._publisher.connected:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._inbox.room()
            except TimeoutError:
                pass

    async def stop(self) -> None:
        """May be called twice."""
        await end_tasks(self._task)

    async def _block_list(self) -> Snapshot:
        said = self.said
        snapshot = await fetch_block_list(self._http, said.url)
        if (snapshot.replica, snapshot.epoch) != (said.name, said.epoch):
            raise ValueError(f"incarnation {snapshot.epoch} of {snapshot.replica!r} answers at {said.url}")
        self._telemetry.resyncs += 1
        return snapshot
