"""Membership of a router by itself: leases, reports, and the resyncs that repair them.

Owns the expiry of leases, and the resyncs under way. A replica lives under its lease: no renewal, no membership.
Whatever reports are lost, its block list is fetched anew and the index is right again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import aiohttp
import msgspec

from radix.events import EventBatch, Registration
from radix.feed import Outcome
from router.errors import Refusal
from router.fleet import Fleet, Replica, State
from router.joins import check_registration, fetch_block_list, granted_lease
from router.roster import Roster
from router.telemetry import Telemetry
from router.truth import LocalTruth

log = logging.getLogger("radixgate.joins")

RESYNC_RETRY_S = 0.5
OVERTAKEN = 5  # tries of a block list that later reports overtook; only one that was asked for can be


class LocalJoins:
    """The members that joined, by name, and their resyncs under way."""

    def __init__(
        self,
        fleet: Fleet,
        roster: Roster,
        truth: LocalTruth,
        http: aiohttp.ClientSession,
        telemetry: Telemetry,
        clock: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._roster = roster
        self._truth = truth
        self._http = http
        self._telemetry = telemetry
        self._clock = clock
        self._resyncs: dict[Replica, asyncio.Task[None]] = {}
        fleet.subscribe(self._on_change)

    async def register(self, said: Registration) -> float:
        check_registration(said)
        lease_s = granted_lease(said)
        self._roster.admit(said).lease_until = self._clock() + lease_s
        return lease_s

    async def leave(self, name: str, epoch: int) -> None:
        replica = self._member(name)
        if replica.registration is None or replica.registration.epoch != epoch:
            raise Refusal(409, f"Another incarnation of {name!r} has joined.", code="superseded")
        self._roster.dismiss(replica, "left")

    async def report(self, batch: EventBatch) -> None:
        replica = self._member(batch.replica)
        if replica.registration is None or replica.registration.epoch != batch.epoch:
            raise Refusal(404, f"This incarnation of {batch.replica!r} has not joined.", code="unknown_replica")
        if replica.state is not State.UP:
            return  # the resync that follows its return will cover this batch
        outcome = self._truth.apply(replica, batch)
        self._telemetry.batches[outcome.name.lower()] += 1
        if outcome is Outcome.GAP:
            self.resync(replica)

    def resync(self, replica: Replica) -> None:
        if replica not in self._resyncs:
            self._resyncs[replica] = asyncio.get_running_loop().create_task(self._fetch(replica))

    def expire(self) -> None:
        now = self._clock()
        late = [replica for replica in self._fleet if replica.joined and replica.lease_until < now]
        for replica in late:
            log.warning("replica %s did not renew its lease", replica.name)
            self._roster.dismiss(replica, "its lease ran out")

    async def close(self) -> None:
        tasks = list(self._resyncs.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _member(self, name: str) -> Replica:
        replica = self._roster.member(name)
        if replica is None:
            raise Refusal(404, f"No replica {name!r} has joined; PUT /replicas/{name} first.", code="unknown_replica")
        return replica

    def _on_change(self, replica: Replica) -> None:
        if replica.joined and replica.state is State.UP:
            self.resync(replica)
        else:
            task = self._resyncs.pop(replica, None)
            if task is not None:
                task.cancel()

    async def _fetch(self, replica: Replica) -> None:
        """Fetch the replica's block list until the index is right; a replica that stays away leaves by other ways."""
        try:
            await self._restore(replica)
        except Exception:
            log.exception("replica %s: its block list cannot be used", replica.name)
        finally:
            if self._resyncs.get(replica) is asyncio.current_task():
                del self._resyncs[replica]

    async def _restore(self, replica: Replica) -> None:
        overtaken = 0
        while replica.state is State.UP:
            try:
                snapshot = await fetch_block_list(self._http, replica.address.url)
            except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as error:
                log.warning("replica %s: cannot fetch its block list, trying again: %s", replica.name, error)
                await asyncio.sleep(RESYNC_RETRY_S)
                continue
            said = replica.registration
            if said is None or snapshot.epoch != said.epoch:
                break  # another incarnation answered; it will register, and be asked then
            self._telemetry.resyncs += 1
            outcome = self._truth.restore(replica, snapshot)
            if outcome is Outcome.STALE and overtaken < OVERTAKEN:
                overtaken += 1  # reports came in while it was on its way
                continue
            if outcome is not Outcome.GAP:
                break
            await asyncio.sleep(RESYNC_RETRY_S)
