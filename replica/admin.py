"""What can be done to a simulated replica from outside, so that a benchmark can show how a fleet takes it.

Owns two routes, `POST /admin/flush` and `POST /admin/slow?factor=F`. Must never be part of a replica that serves a real
model: whoever reaches its port could undo its work.
"""

from __future__ import annotations

import math

import msgspec
from aiohttp import web

from replica.blocks import Namespace
from replica.engine import Engine
from replica.errors import ApiError
from replica.simulated import SimulatedRunner

_NOBODYS = Namespace("", cache_salt="the flush's own")


class Admin:
    """The handlers, for the engine that `runner` computes for."""

    def __init__(self, engine: Engine, runner: SimulatedRunner) -> None:
        self._engine = engine
        self._runner = runner

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/admin/flush", self._flush), web.post("/admin/slow", self._slow)]

    async def _flush(self, http: web.Request) -> web.Response:
        """Empties the prefix cache, but for what requests under way are using; says how many blocks that was."""
        pool = self._engine.scheduler.pool
        before = pool.resident
        # Taking every block that nobody uses gives its content up, in whatever order evictions go here.
        table = pool.open(_NOBODYS, b"")
        pool.grow(table, pool.allocatable * pool.block_size)
        pool.release(table)
        self._engine.publish()
        return _json({"flushed_blocks": before - pool.resident})

    async def _slow(self, http: web.Request) -> web.Response:
        """From the next step on, each takes `factor` times as long as it would at the start; 1 ends it."""
        try:
            factor = float(http.query.get("factor", ""))
        except ValueError:
            factor = math.nan
        if not (math.isfinite(factor) and factor > 0):
            raise ApiError("`factor` must be a number above 0, as in POST /admin/slow?factor=5.", param="factor")
        self._runner.slowness = factor
        return _json({"factor": factor})


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
