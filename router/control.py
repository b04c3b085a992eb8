"""The control plane: health, metrics, the fleet, receipts, and the door through which replicas join and report.

Owns the HTTP surface of the control port (aiohttp). Must never be on a request's hot path; the data port keeps
working when nobody answers here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from radix.events import Registration, Snapshot, decode_batch, encode
from router.decide import RECEIPTS_KEPT, Decider
from router.errors import Refusal
from router.fleet import Fleet, Replica
from router.joins import Joins
from router.residency import Residency
from router.telemetry import Telemetry
from scoring.decision import Receipt

MAX_REPORT = 64 * 1024 * 1024


class ControlPlane:
    """Handlers of the control port. `redis` tells how a router that shares its truth stands with Redis."""

    def __init__(
        self,
        fleet: Fleet,
        residency: Residency,
        decider: Decider,
        joins: Joins,
        telemetry: Telemetry,
        redis: Callable[[], dict[str, object]] | None = None,
    ) -> None:
        self._fleet = fleet
        self._residency = residency
        self._decider = decider
        self._joins = joins
        self._telemetry = telemetry
        self._redis = redis
        self.draining = False

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_REPORT, middlewares=[_refusals_as_json])
        app.add_routes(
            [
                web.get("/healthz/live", self.live),
                web.get("/healthz/ready", self.ready),
                web.get("/metrics", self.metrics),
                web.get("/fleet", self.fleet),
                web.get("/receipts", self.receipts),
                web.put("/replicas/{name}", self.register),
                web.delete("/replicas/{name}", self.leave),
                web.get("/replicas/{name}/residency", self.residency),
                web.post("/replicas/{name}/resync", self.resync),
                web.post("/events", self.events),
            ]
        )
        return app

    async def live(self, request: web.Request) -> web.Response:
        return _json({"live": True})

    async def ready(self, request: web.Request) -> web.Response:
        up = len(self._fleet.up())
        ready = up > 0 and not self.draining
        said: dict[str, object] = {"ready": ready, "replicas_up": up, "draining": self.draining}
        if self._redis is not None:
            said["redis"] = self._redis()
        return _json(said, status=200 if ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        headers = {"content-type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=self._telemetry.render(), headers=headers)

    async def fleet(self, request: web.Request) -> web.Response:
        return _json(
            {
                "policy": self._decider.policy.name,
                "models": self._fleet.table.names,
                "index_blocks": len(self._residency.index),
                "replicas": [self._describe(replica) for replica in self._fleet],
            }
        )

    async def receipts(self, request: web.Request) -> web.Response:
        """The latest receipts, newest first: `?limit=N` (100), `?request_id=ID`."""
        text = request.query.get("limit", "100")
        if not (text.isascii() and text.isdigit()):
            raise Refusal(400, "limit must be a number of receipts.", param="limit")
        wanted = request.query.get("request_id")
        found: list[Receipt] = []
        for receipt in reversed(self._decider.receipts):
            if len(found) >= min(int(text), RECEIPTS_KEPT):
                break
            if wanted is None or receipt.request_id == wanted:
                found.append(receipt)
        return _json({"receipts": found})

    async def register(self, request: web.Request) -> web.Response:
        try:
            said = msgspec.json.decode(await request.read(), type=Registration)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(400, f"The body is not a registration: {error}.") from None
        if said.name != request.match_info["name"]:
            raise Refusal(400, "The name in the path is not the name in the body.", param="name")
        return _json({"lease_s": await self._joins.register(said)})

    async def leave(self, request: web.Request) -> web.Response:
        epoch = request.query.get("epoch", "")
        if not (epoch.isascii() and epoch.isdigit()):
            raise Refusal(400, "Say which incarnation leaves: DELETE /replicas/{name}?epoch=EPOCH.", param="epoch")
        await self._joins.leave(request.match_info["name"], int(epoch))
        return web.Response(status=204)

    async def events(self, request: web.Request) -> web.Response:
        try:
            batch = decode_batch(await request.read())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(400, f"The body is not an event batch (msgpack): {error}.") from None
        await self._joins.report(batch)
        return web.Response(status=202)

    async def residency(self, request: web.Request) -> web.Response:
        """What this router believes that the replica holds, in the form of the replica's own block list (msgpack)."""
        _, held = self._reported(request.match_info["name"])
        return web.Response(body=encode(held), content_type="application/msgpack")

    async def resync(self, request: web.Request) -> web.Response:
        """Has the replica's block list fetched anew: an audit found that this router is wrong about it."""
        replica, _ = self._reported(request.match_info["name"])
        self._joins.resync(replica)
        return web.Response(status=202)

    def _reported(self, name: str) -> tuple[Replica, Snapshot]:
        """Raises Refusal when there are no reports of such a replica."""
        replica = self._fleet.get(name)
        if replica is None:
            raise Refusal(404, f"No replica is named {name!r}; GET /fleet lists them.", code="unknown_replica")
        held = self._residency.reported(replica)
        if held is None:
            why = f"it is {replica.state.value}" if replica.joined else "it did not join, and makes none"
            raise Refusal(409, f"There are no reports of replica {name!r}: {why}.", code="no_reports")
        return replica, held

    def _describe(self, replica: Replica) -> dict[str, Any]:
        load = replica.load
        said = replica.registration
        return {
            "name": replica.name,
            "url": replica.address.url,
            "state": replica.state.value,
            "reason": replica.reason,
            "joined": replica.joined,
            "models": replica.serves,
            "epoch": said.epoch if said else None,
            "block_size": said.block_size if said else None,
            "capacity_tokens": load.capacity_tokens or None,
            "reports": self._residency.standing(replica),
            "reported_blocks": self._residency.reported_blocks(replica),
            "waiting": load.waiting,
            "decoding": load.decoding,
            "queued_tokens": load.queued_tokens,
            "served": load.served,
            "prefill_tokens_per_s": round(1.0 / load.learned.seconds_per_token),
            "decode_slowdown": round(load.learned.slowdown, 4),
            "overhead_s": round(load.learned.overhead_s, 4),
            "receipts_learned_from": load.learned.receipts,
        }


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


@web.middleware
async def _refusals_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as refusal:
        return web.Response(body=refusal.body(), status=refusal.status, content_type="application/json")
    except web.HTTPException as error:
        if error.status < 400:
            raise
        body = Refusal(error.status, f"{request.method} {request.path}: {error.reason}.").body()
        return web.Response(body=body, status=error.status, content_type="application/json")
