"""What stands in a replica's way to the fleet: a wire that can be cut, and a post that loses and shuffles letters."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import aiohttp
from aiohttp import web

from tests.chaos.background import Background


class Wire:
    """TCP from its own port to another of this machine. Cut, it ends every connection and closes new ones; cut
    silently, it takes everything and passes nothing on.
    """

    def __init__(self, background: Background, target: int) -> None:
        self.port = 0
        self._background = background
        self._target = target
        self._cut = False
        self._passes = asyncio.Event()
        self._server: asyncio.Server
        self._connections: set[asyncio.Task[None]] = set()
        background.call(self._open())

    def close(self) -> None:
        self._background.call(self._close())

    def cut(self, *, silently: bool = False) -> None:
        self._background.call(self._sever(silently))

    def mend(self) -> None:
        self._background.call(self._mend())

    async def _open(self) -> None:
        self._passes.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        await self._drop()

    async def _sever(self, silently: bool) -> None:
        self._passes.clear()
        if not silently:
            self._cut = True
            await self._drop()

    async def _mend(self) -> None:
        self._cut = False
        await self._drop()  # what a silent cut has swallowed must not arrive late
        self._passes.set()

    async def _drop(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        ends = [writer]
        try:
            if not self._cut:
                back, onward = await asyncio.open_connection("127.0.0.1", self._target)
                ends.append(onward)
                async with asyncio.TaskGroup() as both_ways:
                    both_ways.create_task(self._pump(reader, onward))
                    both_ways.create_task(self._pump(back, writer))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._passes.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("one side has closed")


class Post:
    """HTTP from its own port to a router's control port, everything as it is. While `mischief` is set, batches of
    events are dropped, doubled, or held back behind the next one; `done` counts each.
    """

    def __init__(self, background: Background, control: str, seed: int) -> None:
        self.port = 0
        self.mischief = False
        self.done: Counter[str] = Counter()
        self._background = background
        self._control = control
        self._random = random.Random(seed)
        self._held: bytes | None = None
        self._http: aiohttp.ClientSession
        self._runner: web.AppRunner
        background.call(self._open())

    def close(self) -> None:
        self._background.call(self._close())

    async def _open(self) -> None:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        application = web.Application(client_max_size=1 << 26)
        application.router.add_post("/events", self._events)
        application.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._http.close()

    async def _events(self, request: web.Request) -> web.Response:
        body = await request.read()
        deed = self._random.choice(("pass", "drop", "double", "hold")) if self.mischief else "pass"
        self.done[deed] += 1
        if deed == "drop":
            return web.Response(status=202)
        if deed == "hold" and self._held is None:
            self._held = body
            return web.Response(status=202)
        answer = await self._forward(request, body)
        if deed == "double":
            await self._forward(request, body)
        if self._held is not None:
            held, self._held = self._held, None
            await self._forward(request, held)
        return answer

    async def _pass(self, request: web.Request) -> web.Response:
        return await self._forward(request, await request.read())

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        headers = {"content-type": request.headers.get("content-type", "")}
        try:
            async with self._http.request(
                request.method, self._control + request.path_qs, data=body, headers=headers
            ) as answer:
                data = await answer.read()
                return web.Response(status=answer.status, body=data, content_type=answer.content_type)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return web.Response(status=502, text=str(error))
