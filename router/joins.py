"""Replicas that come by themselves: their leases, and what they report about their blocks.

Owns registrations, the expiry of leases, and resyncs. A replica lives under its lease: no renewal, no membership.
Whatever reports are lost, its block list is fetched anew and the index is right again. Must never trust an older
incarnation over a newer one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import aiohttp
import msgspec

from radix.events import EventBatch, Registration, Snapshot, decode_snapshot
from radix.feed import Outcome
from router.errors import Refusal
from router.fleet import Address, Fleet, Replica, State, check_name
from router.residency import Residency
from router.telemetry import Telemetry

log = logging.getLogger("radixgate.joins")

LEASE_RANGE_S = (1.0, 300.0)
RESYNC_TIMEOUT_S = 30.0
RESYNC_RETRY_S = 0.5


class Joins:
    """The members that joined, by name, and their resyncs under way."""

    def __init__(
        self,
        fleet: Fleet,
        residency: Residency,
        http: aiohttp.ClientSession,
        telemetry: Telemetry,
        make_replica: Callable[[str, Address], Replica],
        clock: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._residency = residency
        self._http = http
        self._telemetry = telemetry
        self._make_replica = make_replica
        self._clock = clock
        self._resyncs: dict[Replica, asyncio.Task[None]] = {}
        fleet.subscribe(self._on_change)

    def register(self, said: Registration) -> float:
        """A first registration or a renewal; returns the lease granted, seconds. Raises Refusal."""
        lease_s = min(max(said.lease_s, LEASE_RANGE_S[0]), LEASE_RANGE_S[1])
        try:
            check_name(said.name)
            address = Address(said.url)
        except ValueError as error:
            raise Refusal(422, f"{error}.") from None
        if said.block_size < 1:
            raise Refusal(422, "A replica's block size is at least one token.", param="block_size")
        replica = self._fleet.get(said.name)
        known = replica.registration if replica is not None else None
        if replica is not None and not replica.joined:
            raise Refusal(409, f"The name {said.name!r} belongs to a replica of the configuration.", code="name_taken")
        if known is not None and said.epoch < known.epoch:
            raise Refusal(409, f"A newer incarnation of {said.name!r} has joined.", code="superseded")
        if replica is None or known is None or said.epoch > known.epoch:
            self._admit(said, address, self._clock() + lease_s)
        else:
            replica.registration = said
            replica.lease_until = self._clock() + lease_s
        return lease_s

    def leave(self, name: str, epoch: int) -> None:
        """A clean farewell. Raises Refusal when no such incarnation is here."""
        replica = self._member(name)
        if replica.registration is None or replica.registration.epoch != epoch:
            raise Refusal(409, f"Another incarnation of {name!r} has joined.", code="superseded")
        self._fleet.remove(replica, "left")

    def report(self, batch: EventBatch) -> None:
        """A batch of block events. Raises Refusal when its replica must register (again) first."""
        replica = self._member(batch.replica)
        if replica.registration is None or replica.registration.epoch != batch.epoch:
            raise Refusal(404, f"This incarnation of {batch.replica!r} has not joined.", code="unknown_replica")
        if replica.state is not State.UP:
            return  # the resync that follows its return will cover this batch
        outcome = self._residency.apply(replica, batch)
        self._telemetry.batches[outcome.name.lower()] += 1
        if outcome is Outcome.GAP:
            self._resync(replica)

    def expire(self) -> None:
        """Let go of the members whose lease ran out."""
        now = self._clock()
        late = [replica for replica in self._fleet if replica.joined and replica.lease_until < now]
        for replica in late:
            log.warning("replica %s did not renew its lease", replica.name)
            self._fleet.remove(replica, "its lease ran out")

    async def close(self) -> None:
        tasks = list(self._resyncs.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _member(self, name: str) -> Replica:
        replica = self._fleet.get(name)
        if replica is None or not replica.joined:
            raise Refusal(404, f"No replica {name!r} has joined; PUT /replicas/{name} first.", code="unknown_replica")
        return replica

    def _admit(self, said: Registration, address: Address, lease_until: float) -> None:
        """A new incarnation: whatever was known of the one before is void."""
        before = self._fleet.get(said.name)
        if before is not None:
            self._fleet.remove(before, "a new incarnation joined")
        replica = self._make_replica(said.name, address)
        replica.joined = True
        replica.registration = said
        replica.lease_until = lease_until
        replica.models = said.models
        replica.load.capacity_tokens = said.capacity_blocks * said.block_size
        self._fleet.add(replica)

    def _on_change(self, replica: Replica) -> None:
        if replica.joined and replica.state is State.UP:
            self._resync(replica)
        else:
            task = self._resyncs.pop(replica, None)
            if task is not None:
                task.cancel()

    def _resync(self, replica: Replica) -> None:
        if replica not in self._resyncs:
            self._resyncs[replica] = asyncio.get_running_loop().create_task(self._fetch(replica))

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
        while replica.state is State.UP:
            try:
                snapshot = await self._snapshot(replica)
            except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as error:
                log.warning("replica %s: cannot fetch its block list, trying again: %s", replica.name, error)
                await asyncio.sleep(RESYNC_RETRY_S)
                continue
            said = replica.registration
            if said is None or snapshot.epoch != said.epoch:
                break  # another incarnation answered; it will register, and be asked then
            self._telemetry.resyncs += 1
            if self._residency.restore(replica, snapshot) is not Outcome.GAP:
                break
            await asyncio.sleep(RESYNC_RETRY_S)

    async def _snapshot(self, replica: Replica) -> Snapshot:
        timeout = aiohttp.ClientTimeout(total=RESYNC_TIMEOUT_S)
        async with self._http.get(replica.address.url + "/radixgate/blocks", timeout=timeout) as response:
            response.raise_for_status()
            return decode_snapshot(await response.read())
