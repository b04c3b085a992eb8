"""Requests on the wire: connections opened ahead of time, and answers read as they arrive.

Owns the connections to a target. A general HTTP client takes 38 µs for each streamed chunk and 220 for a request, on a
machine that it shares with the server it measures; this one takes 20 (3 of them here) and 70. Must never decide
when to send (`runner.py` does), follow a redirect, or repeat a request of which the server may have answered a byte.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import cast
from urllib.parse import urlsplit

import httptools

from loadgen.answer import Answer, EventReader

CONNECT_S = 5.0
# A server that closed an idle connection says so within a round trip; one that took longer had taken the request.
STALE_S = 1.0
# Of an answer that is no stream, so much is kept for its error message.
KEPT_BYTES = 64 * 1024
CLOSED = "the server closed the connection"

Clock = Callable[[], float]


class CannotConnect(OSError):
    """No connection to the server could be opened."""


class Origin:
    """One server: how requests to it begin, and the connections to it that are open and idle.

    `url` is an origin, with a path before `path` where it has one; `headers` go with every request. Raises ValueError
    for a URL that is none, or a header that would break the request's head.
    """

    def __init__(self, url: str, path: str, headers: Mapping[str, str], clock: Clock) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL such as http://127.0.0.1:8080")
        self._host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._clock = clock
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._head = _head(f"{parts.path.rstrip('/')}{path}", parts.netloc.rpartition("@")[2], headers)

    def request(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        """The whole request as it goes over the wire."""
        return b"%s%scontent-length: %d\r\n\r\n%s" % (self._head, header_lines(headers), len(body), body)

    async def connection(self) -> Connection:
        """One that is open and nobody else's; `ask` takes it back. Raises CannotConnect."""
        while self._idle:
            if (idle := self._idle.pop()).open:
                return idle
        return await self.connect()

    async def connect(self) -> Connection:
        """A new one. Raises CannotConnect."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, protocol = await loop.create_connection(
                    lambda: Connection(self._clock, self._open), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            raise CannotConnect(f"no connection to {self._host}:{self._port} within {CONNECT_S:g} s") from None
        except (OSError, UnicodeError) as error:  # the latter of a host's name that can be none
            raise CannotConnect(f"cannot connect to {self._host}:{self._port}: {error}") from None
        return protocol

    async def ask(self, request: bytes, answer: Answer, connection: Connection | None = None) -> None:
        """Sends `request` and fills `answer` as it comes in, over `connection` if it is still open.

        A server may close a connection that was idle while the request is on its way: then it is sent once more, over
        a new one, and the time counts on. Failures end in the answer's `error`; only cancellation raises.
        """
        try:
            if connection is None or not connection.open:
                connection = await self.connection()
            if not await self._once(connection, request, answer) and not await self._once(
                await self.connect(), request, answer
            ):
                answer.fail(CLOSED)
        except CannotConnect as error:
            answer.fail(str(error))

    def _give_back(self, connection: Connection) -> None:
        """Open ones are used again."""
        if connection.open:
            self._idle.append(connection)

    async def close(self) -> None:
        """Breaks every connection, whatever goes on there."""
        for connection in tuple(self._open):
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # the transports say goodbye in the next turn of the loop

    async def _once(self, connection: Connection, request: bytes, answer: Answer) -> bool:
        """False where the connection turned out to be a stale one."""
        try:
            told = await connection.ask(request, answer)
        except asyncio.CancelledError:
            connection.close()
            raise
        self._give_back(connection)
        return told


class Connection(asyncio.Protocol):
    """One connection; one request at a time. It closes itself when it can take no other one, and is in `register` for
    as long as it is open.
    """

    def __init__(self, clock: Clock, register: set[Connection]) -> None:
        self._clock = clock
        self._register = register
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._over: asyncio.Future[bool] | None = None
        self._reader = EventReader()
        self._refusal = b""
        self._used = False
        self._heard = False
        self._now = self._asked_at = 0.0

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes, answer: Answer) -> bool:
        """Sends at once. False if the connection was a stale one: it had served requests before, and broke soon,
        before a byte came back.
        """
        self._over = asyncio.get_running_loop().create_future()
        self._answer, self._reader, self._refusal, self._heard = answer, EventReader(), b"", False
        if self._transport is None:
            return False
        self._asked_at = self._clock()
        self._transport.write(request)
        told = await self._over
        self._used = True
        return told

    def close(self) -> None:
        """At once: what is under way is lost."""
        if self._transport is not None:
            self._transport.abort()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._register.add(self)

    def data_received(self, data: bytes) -> None:
        self._now = self._clock()
        self._heard = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._end(f"the server's answer is not HTTP: {error}", final=True)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._register.discard(self)
        if self._over is None or self._over.done():
            return
        if self._used and not self._heard and self._clock() - self._asked_at < STALE_S:
            self._over.set_result(False)
        elif self._answer is not None and self._answer.status > 200:
            self._answer.refuse(self._answer.status, self._refusal)
            self._end(None, final=True)
        else:  # an answer may end with its connection, but then it has said that it is whole
            whole = self._answer is not None and self._answer.done
            self._end(None if whole else f"{CLOSED}: {error or 'no reason given'}", final=True)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer is None:
            return
        match name.lower():
            case b"x-radixgate-replica":
                self._answer.replica = value.decode("latin-1")
            case b"x-request-id":
                self._answer.request_id = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._answer is not None:
            self._answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        answer = self._answer
        if answer is None:
            return
        if answer.status == 200:
            now = self._now
            for data in self._reader.feed(body):
                answer.take(data, now)
        elif len(self._refusal) < KEPT_BYTES:
            self._refusal += body

    def on_message_complete(self) -> None:
        answer = self._answer
        if answer is None or answer.status < 200:  # an interim answer: the one that counts follows
            return
        if answer.status != 200:
            answer.refuse(answer.status, self._refusal)
        else:
            answer.end()
        self._end(None, final=not self._parser.should_keep_alive())

    def _end(self, failure: str | None, final: bool) -> None:
        if self._answer is not None and failure is not None:
            self._answer.fail(failure)
        self._answer = None
        if final and self._transport is not None:
            self._transport.abort()
        if self._over is not None and not self._over.done():
            self._over.set_result(True)


def _head(path: str, host: str, headers: Mapping[str, str]) -> bytes:
    every = {"host": host, "content-type": "application/json", "accept": "text/event-stream"}
    own = {name.lower(): value for name, value in headers.items()}  # in place of ours, not beside them
    return f"POST {path} HTTP/1.1\r\n".encode("ascii") + header_lines(every | {"user-agent": "radixgate-bench"} | own)


def header_lines(headers: Mapping[str, str]) -> bytes:
    """As they go over the wire. Raises ValueError for one that would break the head."""
    for name, value in headers.items():
        if not name or any(character in f"{name}{value}" for character in "\r\n\0") or ":" in name or " " in name:
            raise ValueError(f"{name!r}: {value!r} is not a header")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1", "replace")
