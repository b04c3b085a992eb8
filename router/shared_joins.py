"""Membership that many routers share.

Owns the two claims that make a replica a member here: it lives in the tree in Redis, or it holds a lease at this
router's control port. So a replica that joins anywhere joins everywhere, and one that joins while Redis is away is
routed to by those it told. A replica without either claim leaves the fleet. Whatever is reported here goes on into
Redis. Must never wait for Redis to answer a replica, but to one that leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import aiohttp
import msgspec

from radix.events import EventBatch, Registration
from radix.members import Member
from radix.mirror import Mirror
from radix.redis_link import explain
from radix.redis_tree import RedisTree
from radix.tasks import end_tasks
from router.audit_repair import restore_tree
from router.errors import Refusal
from router.fleet import Fleet, Replica
from router.inlet import Inlet
from router.joins import check_registration, granted_lease
from router.roster import Roster
from router.telemetry import Telemetry

log = logging.getLogger("radixgate.joins")

FAREWELL_S = 2.0


class SharedJoins:
    """The fleet follows the mirror's members and the incarnations that report here."""

    def __init__(
        self,
        fleet: Fleet,
        roster: Roster,
        mirror: Mirror,
        tree: RedisTree,
        http: aiohttp.ClientSession,
        telemetry: Telemetry,
        clock: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._roster = roster
        self._mirror = mirror
        self._tree = tree
        self._http = http
        self._telemetry = telemetry
        self._clock = clock
        self._inlets: dict[str, Inlet] = {}  # by name
        self._resyncs: dict[Replica, asyncio.Task[None]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._unclaimed_since: dict[Replica, float] = {}
        self._refused: set[str] = set()  # members of the tree that cannot be members here
        mirror.subscribe(self._on_member)

    # What replicas say here.

    async def register(self, said: Registration) -> float:
        check_registration(said)
        lease_s = granted_lease(said)
        said = msgspec.structs.replace(said, lease_s=lease_s)
        before = self._roster.member(said.name)
        known = before.registration if before is not None else None
        replica = self._roster.admit(said)
        if replica is before and said != known:
            self._fleet.announce(replica)
        self._open(said, self._clock() + lease_s)
        return lease_s

    async def leave(self, name: str, epoch: int) -> None:
        replica = self._roster.member(name)
        if replica is None or replica.registration is None:
            raise Refusal(404, f"No replica {name!r} has joined.", code="unknown_replica")
        if replica.registration.epoch != epoch:
            raise Refusal(409, f"Another incarnation of {name!r} has joined.", code="superseded")
        self._roster.dismiss(replica, "left")
        inlet = self._inlets.get(name)
        if inlet is not None and inlet.said.epoch == epoch:
            del self._inlets[name]
            await inlet.stop()  # else it would register the replica again
        try:
            async with asyncio.timeout(FAREWELL_S):
                await self._tree.leave(name, epoch)
        except Exception as error:
            log.warning("replica %s left, but Redis cannot be told; its lease will end: %s", name, explain(error))

    async def report(self, batch: EventBatch) -> None:
        inlet = self._inlets.get(batch.replica)
        if inlet is None or inlet.said.epoch != batch.epoch:
            message = f"This incarnation of {batch.replica!r} has not joined here; PUT /replicas/{batch.replica} first."
            raise Refusal(404, message, code="unknown_replica")
        self._telemetry.batches["queued"] += 1
        await inlet.take(batch)

    def resync(self, replica: Replica) -> None:
        """Into Redis, and so to every router."""
        if replica not in self._resyncs:
            task = self._resyncs[replica] = asyncio.get_running_loop().create_task(self._restore(replica))
            task.add_done_callback(lambda _: self._resyncs.pop(replica, None))

    def expire(self) -> None:
        """The tree has leases of its own: one that ran out here may live on by reports to another router."""
        now = self._clock()
        for inlet in [inlet for inlet in self._inlets.values() if inlet.lease_until < now]:
            self._shut(inlet)
            said = inlet.said
            replica = self._roster.member(said.name)
            if replica is None or replica.registration is None or replica.registration.epoch != said.epoch:
                continue
            if not self._lives_in_tree(said):
                log.warning("replica %s did not renew its lease", said.name)
                self._roster.dismiss(replica, "its lease ran out")
        self._dismiss_unclaimed(now)

    def _dismiss_unclaimed(self, now: float) -> None:
        """Whoever has had neither claim for the time of a lease, as when Redis came back with an older memory."""
        since, self._unclaimed_since = self._unclaimed_since, {}
        for replica in [replica for replica in self._fleet if replica.joined]:
            said = replica.registration
            if said is None or self._reports_here(said) or self._lives_in_tree(said):
                continue
            began = self._unclaimed_since[replica] = since.get(replica, now)
            if now - began > said.lease_s:
                log.warning("replica %s is known neither to Redis nor here any more", replica.name)
                self._roster.dismiss(replica, "nobody knows it any more")

    def _reports_here(self, said: Registration) -> bool:
        inlet = self._inlets.get(said.name)
        return inlet is not None and inlet.said.epoch == said.epoch

    async def close(self) -> None:
        for inlet in list(self._inlets.values()):
            self._shut(inlet)
        await end_tasks(*self._resyncs.values())
        await asyncio.gather(*self._stopping)

    async def _restore(self, replica: Replica) -> None:
        self._telemetry.resyncs += 1
        try:
            problem = await restore_tree(replica.address.url, self._http, self._tree)
        except Exception:
            log.exception("replica %s: its block list cannot be used", replica.name)
        else:
            if problem:
                log.warning("replica %s: %s", replica.name, problem)

    def _open(self, said: Registration, lease_until: float) -> None:
        inlet = self._inlets.get(said.name)
        if inlet is not None and inlet.said.epoch == said.epoch:
            inlet.said, inlet.lease_until = said, lease_until
            return
        if inlet is not None:
            self._shut(inlet)
        self._inlets[said.name] = Inlet(said, lease_until, self._tree, self._http, self._telemetry)

    def _shut(self, inlet: Inlet) -> None:
        del self._inlets[inlet.said.name]
        task = asyncio.get_running_loop().create_task(inlet.stop())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    # What the tree says.

    def _on_member(self, member: Member) -> None:
        if self._mirror.members.get(member.name) is member:
            self._on_joined(member.registration)
        else:
            self._on_left(member)

    def _on_joined(self, said: Registration) -> None:
        before = self._roster.member(said.name)
        try:
            check_registration(said)
            replica = self._roster.admit(said)
        except Refusal as refusal:
            # An older incarnation than the one that joined here is no news: Redis will learn of the newer.
            if refusal.code != "superseded" and said.name not in self._refused:
                self._refused.add(said.name)
                log.error("replica %s of the tree cannot join this router: %s", said.name, refusal.message)
            if before is not None:
                self._fleet.announce(before)
            return
        inlet = self._inlets.get(said.name)
        if inlet is not None and inlet.said.epoch < said.epoch:
            self._shut(inlet)  # what that incarnation still reports is void
        if replica is before:
            self._fleet.announce(replica)

    def _on_left(self, member: Member) -> None:
        self._refused.discard(member.name)
        replica = self._roster.member(member.name)
        if replica is None or replica.registration is None or replica.registration.epoch != member.epoch:
            return
        if self._reports_here(member.registration):
            self._fleet.announce(replica)  # its publisher will bring it back
        else:
            log.info("replica %s left, or its lease ran out", member.name)
            self._roster.dismiss(replica, "it left, or its lease ran out")

    def _lives_in_tree(self, said: Registration) -> bool:
        member = self._mirror.members.get(said.name)
        return member is not None and member.epoch == said.epoch
