"""Routers and Redis learn of the replica, of every event in order, and of its leave; whatever fails is tried again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec
from aiohttp import web

from radix.events import BlockStored, EventBatch, Registration, Snapshot, decode_batch, decode_snapshot, pack_keys
from radix.redis_link import open_link
from radix.redis_tree import RedisTree
from replica.journal import Journal
from replica.reporter import Reporter
from replica.service import ReplicaService
from replica.settings import Settings
from tests.redis_server import RedisServer
from tests.replica.conftest import QUICK
from tests.replica.replay import Replay

WAIT_S = 10.0


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


def engineless() -> Snapshot:
    raise AssertionError("a router asks for the block list itself")


@asynccontextmanager
async def reporting(*ports: int, keep: int = 256) -> AsyncIterator[Journal]:
    journal = Journal("r/1", 7, keep)
    reporter = Reporter(journal, account, engineless, controls=[f"http://127.0.0.1:{port}/" for port in ports])
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
    logging.getLogger("replica.router_link").addHandler(warnings)
    try:
        async with reporting(port):
            assert f"127.0.0.1:{port}" in (await warnings.records.get()).getMessage()
    finally:
        logging.getLogger("replica.router_link").removeHandler(warnings)


# To Redis


@asynccontextmanager
async def tree_in(server: RedisServer) -> AsyncIterator[RedisTree]:
    link = open_link(server.url)
    try:
        yield RedisTree(link)
    finally:
        await link.close()


@asynccontextmanager
async def serving(*reports: str, join: tuple[str, ...] = ()) -> AsyncIterator[ReplicaService]:
    """A whole replica with its engine."""
    settings = Settings("r/1", kv_blocks=64, max_model_len=512, timing=QUICK, drain_s=0.1, report=reports, join=join)
    service = ReplicaService(settings)
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def prompts(service: ReplicaService, count: int) -> None:
    """Enough of them drive the first ones' blocks out."""
    async with httpx.AsyncClient(base_url=service.url, timeout=WAIT_S) as http:
        for number in range(count):
            body = {"model": "simulated", "prompt": f"{number} of many prompts, each its own " * 12, "max_tokens": 2}
            (await http.post("/v1/completions", json=body)).raise_for_status()


async def equal(tree: RedisTree, service: ReplicaService) -> None:
    """Redis comes to say what the replica says of itself."""
    deadline = time.monotonic() + WAIT_S
    while True:
        told = await tree.residency("r/1")
        async with httpx.AsyncClient(base_url=service.url, timeout=WAIT_S) as http:
            truth = decode_snapshot((await http.get("/radixgate/blocks")).content)
        if told == (truth.seq, set(Replay(truth.stored).parents)):
            return
        assert time.monotonic() < deadline


async def test_every_redis_and_every_router_comes_to_know_what_the_engine_holds() -> None:
    control = Control()
    with RedisServer() as one, RedisServer() as two:
        async with tree_in(one) as first, tree_in(two) as second, control.listening() as port:
            async with serving(one.url, two.url, join=(f"http://127.0.0.1:{port}",)) as service:
                await prompts(service, 10)
                for tree in (first, second):
                    await equal(tree, service)
                held = await first.residency("r/1")
                assert held is not None
                assert 32 < len(held[1]) <= 64
                assert await control.registrations.get() == service.account()
                assert (await control.batches.get()).seq == 0
            for tree in (first, second):
                assert await tree.residency("r/1") is None, "it took leave"


async def test_a_redis_that_was_away_for_a_while_comes_to_know_it_too() -> None:
    with RedisServer() as server:
        server.kill()
        async with serving(server.url) as service:
            await prompts(service, 3)
            server.start()
            async with tree_in(server) as tree:
                await equal(tree, service)
            server.kill()
            await prompts(service, 5)
            server.start()
            async with tree_in(server) as tree:
                await equal(tree, service)


async def test_a_redis_that_does_not_answer_holds_up_neither_the_answers_nor_the_end() -> None:
    with RedisServer() as server:
        async with serving(server.url) as service:
            async with tree_in(server) as tree:
                await equal(tree, service)
            server.pause()
            async with asyncio.timeout(WAIT_S):
                await prompts(service, 3)
                await service.stop()
            server.resume()
