"""Sends a burst with as little of its own in the way as possible: over connections that are open, bodies made before.

Owns the connections and the moment of each sending. Must never read a response more closely than to find its end and
its status.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Self, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from loadgen.herding.bursts import Shot
from loadgen.herding.fake_replicas import MODEL

TICK_S = 0.001  # as fine as the loop's timers are
MAX_TOKENS = 64


def request_bytes(authority: str, prompt: list[int]) -> bytes:
    body = msgspec.json.encode({"model": MODEL, "prompt": prompt, "max_tokens": MAX_TOKENS})
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class BurstClient:
    """Sends to the routers at `urls`; a shot's router is counted around them. A context: it closes its connections."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._authorities = [urlsplit(url).netloc for url in urls]
        self._connections: list[_Connection] = []
        self._idle: list[list[_Connection]] = [[] for _ in urls]
        self._busy: list[asyncio.Future[int]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *reason: object) -> None:
        for connection in self._connections:
            connection.close()
        await asyncio.sleep(0)  # the transports say goodbye in the next turn of the loop

    async def reserve(self, shots: Sequence[Shot]) -> None:
        """Opens the connections that these shots need and that are not open yet."""
        for router, count in Counter(self._router(shot) for shot in shots).items():
            idle = self._idle[router] = [connection for connection in self._idle[router] if connection.open]
            while len(idle) < count:
                idle.append(await self._connect(self._authorities[router]))

    async def send(self, shots: Sequence[Shot]) -> float:
        """Sends each shot at its moment, which must be `reserve`d; returns how many seconds that took."""
        ready = [(shot, request_bytes(self._authorities[self._router(shot)], shot.prompt)) for shot in shots]
        ready.reverse()
        origin = time.monotonic()
        while True:
            now = time.monotonic() - origin
            while ready and ready[-1][0].at_s <= now:
                shot, data = ready.pop()
                idle = self._idle[self._router(shot)]
                self._busy.append(idle.pop().ask(data, idle))
            if not ready:
                return time.monotonic() - origin
            await asyncio.sleep(TICK_S)

    async def answers(self) -> list[int]:
        """Waits for the answers to all that was sent; their statuses, 0 for a connection that broke."""
        busy, self._busy = self._busy, []
        return list(await asyncio.gather(*busy))

    def _router(self, shot: Shot) -> int:
        return shot.router % len(self._authorities)

    async def _connect(self, authority: str) -> _Connection:
        host, _, port = authority.partition(":")
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, host, int(port))
        self._connections.append(connection)
        return connection


class _Connection(asyncio.Protocol):
    """The client's side of one connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: asyncio.Future[int] | None = None
        self._home: list[_Connection] = []

    @property
    def open(self) -> bool:
        return self._transport is not None

    def ask(self, data: bytes, home: list[_Connection]) -> asyncio.Future[int]:
        """Sends a request; the connection returns to `home` with the answer."""
        self._waiting = asyncio.get_running_loop().create_future()
        self._home = home
        if self._transport is None:
            self._done(0)
        else:
            self._transport.write(data)
        return self._waiting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._done(0)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._home.append(self)
        self._done(self._parser.get_status_code())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _done(self, status: int) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(status)
