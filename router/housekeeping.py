"""What each router does for all: ends leases that ran out in Redis, and sweeps up after those that are gone.

Owns the pace of that. Must never end a lease soon after Redis was away: replicas that live could not renew theirs, and
need the time to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from radix.members import grace_s
from radix.mirror import Mirror
from radix.redis_link import UNAVAILABLE, explain
from radix.redis_tree import RedisTree

log = logging.getLogger("radixgate.housekeeping")

ROUND_S = 0.5
SWEEP_BUCKETS = 128
SWEEP_PAUSE_S = 0.05  # between two slices, of all routers together


class Housekeeper:
    """`run` is its one task. `answers`: Redis did when it was last asked; None until it was."""

    def __init__(
        self, tree: RedisTree, mirror: Mirror, clock: Callable[[], float], peers: Callable[[], int] = lambda: 0
    ) -> None:
        self.answers: bool | None = None
        self._tree = tree
        self._mirror = mirror
        self._clock = clock
        self._peers = peers
        self._complained = False

    async def run(self) -> None:
        """For ever. An outage is the mirror's to tell."""
        while True:
            try:
                await self._round()
            except UNAVAILABLE as error:
                self.answers = False
                log.debug("no Redis: %s", explain(error))
                await asyncio.sleep(ROUND_S)
            except Exception:
                if not self._complained:
                    log.exception("Redis refuses to be kept clean; trying again")
                self._complained = True
                await asyncio.sleep(ROUND_S)

    async def _round(self) -> None:
        until = self._clock() + ROUND_S
        longest = max((member.registration.lease_s for member in self._mirror.members.values()), default=0.0)
        for name in await self._tree.expire(grace_s(longest)):
            log.warning("replica %s did not renew its lease", name)
        self.answers = True
        more = True
        while more and self._clock() < until:
            more = await self._tree.sweep(SWEEP_BUCKETS)
            await asyncio.sleep(SWEEP_PAUSE_S * (1 + self._peers()))
        self._complained = False
        await asyncio.sleep(max(until - self._clock(), 0))
