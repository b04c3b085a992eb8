"""Routers learn of the replica, of every event in order, and of its leave; whatever fails is tried again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from radix.events import BlockStored, EventBatch, Registration, decode_batch, pack_keys
from replica.journal import Journal
from replica.reporter import Reporter


class Control:
    """The least of a router's control port: remembers what it is told, and can forget or fail."""

    def __init__(self, lease_s: float = 30.0) -> None:
        self.lease_s = lease_s
        self.registrations: asyncio.Queue[Registration] = asyncio.Queue()
        self.batches: asyncio.Queue[EventBatch] = asyncio.Queue()
        self.left: asyncio.Queue[str] = asyncio.Queue()
        self.known = False
        self.failures = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Semaphore(0)
        self.in_flight = 0
        self.most_in_flight = 0

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[int]:
        app = web.Application(client_max_size=2**26)
        app.add_routes(
            [
                web.put("/replicas/{name}", self._put),
                web.delete("/replicas/{name}", self._delete),
                web.post("/events", self._events),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()

    async def _put(self, http: web.Request) -> web.Response:
        assert http.match_info["name"] == "r/1"
        self.known = True
        self.registrations.put_nowait(msgspec.json.decode(await http.read(), type=Registration))
        return web.json_response({"lease_s": self.lease_s})

    async def _delete(self, http: web.Request) -> web.Response:
        self.left.put_nowait(http.query["epoch"])
        return web.Response(status=204)

    async def _events(self, http: web.Request) -> web.Response:
        assert http.content_type == "application/msgpack"
        self.in_flight += 1
        self.entered.release()
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        batch = decode_batch(await http.read())
        await self.gate.wait()
        self.in_flight -= 1
        if self.failures:
            self.failures -= 1
            return web.Response(status=500)
        if not self.known:
            return web.json_response({"error": {"message": "?", "code": "unknown_replica"}}, status=404)
        self.batches.put_nowait(batch)
        return web.Response(status=202)


def stored(key: int) -> BlockStored:
    return BlockStored(None, pack_keys([key]))


def account() -> Registration:
    return Registration("r/1", "http://127.0.0.1:1", 7, ("m",), block_size=16, capacity_blocks=8)


@asynccontextmanager
async def reporting(*ports: int, keep: int = 256) -> AsyncIterator[Journal]:
    journal = Journal("r/1", 7, keep)
    reporter = Reporter([f"http://127.0.0.1:{port}/" for port in ports], journal, account)
    reporter.start()
    try:
        yield journal
    finally:
        await reporter.stop()


async def test_it_registers_reports_in_order_and_takes_leave() -> None:
    control, other = Control(), Control()
    async with control.listening() as port, other.listening() as second:
        async with reporting(port, second) as journal:
            for router in (control, other):
                assert await router.registrations.get() == account()
            for key in range(5):
                journal.append((stored(key),))
                for router in (control, other):
                    assert await router.batches.get() == EventBatch("r/1", 7, key, (stored(key),))
        assert [router.left.get_nowait() for router in (control, other)] == ["7", "7"]
        assert control.most_in_flight == 1


async def test_while_a_report_is_under_way_later_steps_join_the_next() -> None:
    control = Control()
    control.gate.clear()
    async with control.listening() as port, reporting(port) as journal:
        await control.registrations.get()
        journal.append((stored(0),))
        await control.entered.acquire()
        for key in range(1, 4):
            journal.append((stored(key),))
        control.gate.set()
        assert await control.batches.get() == EventBatch("r/1", 7, 0, (stored(0),))
        assert await control.batches.get() == EventBatch("r/1", 7, 1, tuple(stored(key) for key in range(1, 4)))


async def test_the_lease_is_renewed_while_nothing_happens() -> None:
    control = Control(lease_s=0.1)
    async with control.listening() as port, reporting(port):
        for _ in range(3):
            await control.registrations.get()


async def test_a_router_that_forgot_is_told_again_and_loses_nothing() -> None:
    control = Control()
    async with control.listening() as port, reporting(port) as journal:
        await control.registrations.get()
        control.known = False
        journal.append((stored(1),))
        assert await control.registrations.get() == account()
        assert (await control.batches.get()).seq == 0


async def test_a_router_that_fails_or_is_away_gets_everything_later() -> None:
    control = Control()
    async with control.listening() as port:
        pass
    async with reporting(port) as journal:
        journal.append((stored(1),))
        control.failures = 2
        async with control.listening(port):
            assert await control.batches.get() == EventBatch("r/1", 7, 0, (stored(1),))
        control.known = False
        journal.append((stored(2),))
        async with control.listening(port):
            assert await control.batches.get() == EventBatch("r/1", 7, 1, (stored(2),))


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: asyncio.Queue[logging.LogRecord] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.put_nowait(record)


async def test_a_router_that_is_not_there_is_mentioned_and_does_not_hold_up_the_end() -> None:
    control = Control()
    async with control.listening() as port:
        pass
    warnings = Warnings()
    logging.getLogger("replica.reporter").addHandler(warnings)
    try:
        async with reporting(port):
            assert f"127.0.0.1:{port}" in (await warnings.records.get()).getMessage()
    finally:
        logging.getLogger("replica.reporter").removeHandler(warnings)
