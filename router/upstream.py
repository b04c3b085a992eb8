"""The replica side of the data plane: pooled keep-alive connections, and the relay of one response at a time.

Owns the sockets to the replicas. Bytes of a body reach the client unmodified and at once; the one exception is the
cut-off end of an event stream's chunk, which waits for its rest, so that a stream whose replica dies can still be
ended between two chunks. Must never decide anything: what a response means for the request is the exchange's
business.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Protocol, cast

from router.framing import BadFraming, ChunkedFraming, CloseFraming, Framing, LengthFraming
from router.heads import BadHead, ResponseHead, read_response_head
from router.outbox import Outbox

MAX_HEAD = 64 * 1024
MAX_HELD = 64 * 1024
MAX_IDLE = 512

Sink = Callable[[bytes], None]


class Exchange(Protocol):
    """What a connection tells the request that it carries."""

    bodyless: bool  # a response to this request never has a body (HEAD)

    def on_head(self, head: bytes, read: ResponseHead, framing: Framing) -> bytes | None:
        """The response begins; the answer is its head for the client. None drops it, and the connection with it."""
        ...

    def on_first_byte(self) -> None:
        """The first of an event stream's body came."""
        ...

    def write_whole(self, data: bytes) -> None:
        """The whole response, head and body, came in one piece."""
        ...

    def sink(self) -> Sink:
        """Where a longer response goes, piece by piece, its head with the first (which may have no body yet)."""
        ...

    def on_end(self) -> None:
        """The response is complete and relayed."""
        ...

    def on_lost(self, reason: str, *, answered: bool) -> None:
        """The connection ended before the response did; `answered`: its head had come."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """One connection to one replica: idle, or carrying one exchange from its request to its last byte."""

    __slots__ = (
        "_framing",
        "_fresh",
        "_held",
        "_holds",
        "_keep",
        "_paused",
        "_pool",
        "_reusable",
        "_sink",
        "exchange",
        "reused",
        "stirred",
        "transport",
    )

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self.transport: asyncio.Transport
        self.exchange: Exchange | None = None
        self.reused = False
        self.stirred = True  # bytes came since the sweeper last looked
        self._framing: Framing | None = None
        self._fresh = False  # nothing of the stream's body has come yet
        self._sink: Sink | None = None
        self._held = b""
        self._holds = False
        self._keep = True
        self._paused = False
        self._reusable = False

    def send(self, exchange: Exchange, head: bytes, body: bytes, *, keep: bool = True) -> None:
        """Carry one request. The connection must be idle; it is kept for others afterwards unless `keep` is false."""
        self.exchange = exchange
        self._keep = keep
        self.stirred = True
        self._pool.outbox.write(self.transport, head + body)

    def abort(self) -> None:
        """Drop the connection and forget its exchange: the replica sees its client leave."""
        self.exchange = None
        self.transport.abort()

    def pause(self) -> None:
        """Stop reading: the client is slower than the replica."""
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self.transport.resume_reading()

    # The life of a connection, as the event loop tells it.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:
            self.transport.abort()  # an answer to nothing: this connection cannot be trusted any more
            return
        self.stirred = True
        try:
            if self._framing is None:
                self._receive_head(data)
            else:
                self._receive_body(self.exchange, data)
        except (BadFraming, BadHead) as error:
            self._fail(f"malformed response: {error}")

    def eof_received(self) -> None:
        return None  # the transport closes itself, and connection_lost follows

    def connection_lost(self, error: Exception | None) -> None:
        if self.exchange is None:
            self._pool.forget(self)
        elif self._framing is not None and self._framing.close_ends() and error is None:
            self._finish()
        else:
            self._fail("the replica closed the connection" if error is None else f"the connection broke: {error}")

    # The response.

    def _receive_head(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MAX_HEAD:
                    raise BadHead("the head exceeds 64 KiB")
                self._held = data
                return
            read = read_response_head(data[: end + 2])
            if not 100 <= read.status < 200:
                break
            data = data[end + 4 :]  # an interim response: the real one follows
        self._held = b""
        framing = self._framing = self._frame(read)
        self._reusable = self._keep and read.keep_alive and not framing.close_ends()
        exchange = self.exchange
        assert exchange is not None
        head = exchange.on_head(data[: end + 2], read, framing)
        if head is None:
            self.abort()
            return
        self._fresh = read.event_stream
        # What is decoded for its client must not be fed twice.
        self._holds = read.event_stream and isinstance(framing, ChunkedFraming) and framing.payload is None
        self._receive_body(exchange, data[end + 4 :], head)

    def _frame(self, read: ResponseHead) -> Framing:
        if (self.exchange is not None and self.exchange.bodyless) or read.status in (204, 304):
            return LengthFraming(0)
        if read.chunked:
            return ChunkedFraming()
        return CloseFraming() if read.length is None else LengthFraming(read.length)

    def _receive_body(self, exchange: Exchange, data: bytes, head: bytes = b"") -> None:
        framing, sink = self._framing, self._sink
        assert framing is not None
        if self._fresh and data:
            self._fresh = False
            exchange.on_first_byte()
        if self._held:
            data = self._held + data
            self._held = b""
        end = framing.feed(data)
        if end < 0:
            if self._holds:
                data = self._hold_back(data)
            if sink is None:
                sink = self._sink = exchange.sink()
                data = head + data
            sink(data)
            return
        if end < len(data):
            self._reusable = False  # bytes past the end of the message
            data = data[:end]
        if sink is None:
            exchange.write_whole(head + data)
        else:
            sink(data)
        self._finish()

    def _hold_back(self, data: bytes) -> bytes:
        """Of an event stream, what ends between two chunks; the rest waits for the next data."""
        framing = self._framing
        assert isinstance(framing, ChunkedFraming)
        boundary = framing.boundary
        if boundary == len(data):
            return data
        if len(data) - boundary > MAX_HELD:
            self._holds = False  # no event is that long: relay it as it comes
            return data
        framing.rewind()
        self._held = data[boundary:]
        return data[:boundary]

    def _finish(self) -> None:
        exchange, self.exchange = self.exchange, None
        self._framing = self._sink = None
        self._holds = False
        # A request that the replica did not read to its end would stand before the next one.
        if self._reusable and not self.transport.get_write_buffer_size():
            self.resume()
            self._pool.release(self)
        else:
            self.transport.abort()
        if exchange is not None:
            exchange.on_end()

    def _fail(self, reason: str) -> None:
        exchange, self.exchange = self.exchange, None
        answered = self._framing is not None
        self._framing = self._sink = None
        self.transport.abort()
        if exchange is not None:
            exchange.on_lost(reason, answered=answered)


class ConnectionPool:
    """The connections to one replica. The last one released is the first one used again, so that surplus ones age
    out.
    """

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, outbox: Outbox, *, connect_timeout_s: float
    ) -> None:
        self.outbox = outbox
        self._host = host
        self._port = port
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._idle: list[UpstreamConnection] = []
        self._retired = False

    def take(self) -> UpstreamConnection | None:
        """An idle connection, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                connection.reused = True
                return connection
        return None

    async def connect(self) -> UpstreamConnection:
        """A new connection. Raises OSError, or TimeoutError when the replica does not accept in time."""
        async with asyncio.timeout(self._connect_timeout_s):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: UpstreamConnection(self), self._host, self._port, ssl=self._tls
            )
        _notice_dead_hosts(connection.transport)
        return connection

    def release(self, connection: UpstreamConnection) -> None:
        """Keep the connection for others, unless there are plenty or the replica is gone for good."""
        if self._retired or len(self._idle) >= MAX_IDLE:
            connection.transport.close()
        else:
            connection.stirred = True
            self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """The connection is gone; it may have been idle."""
        try:
            self._idle.remove(connection)
        except ValueError:
            pass

    def close_quiet(self) -> None:
        """Close the idle connections that nothing used since the last call."""
        kept = []
        for connection in self._idle:
            if connection.stirred:
                connection.stirred = False
                kept.append(connection)
            else:
                connection.transport.close()
        self._idle = kept

    def retire(self) -> None:
        """The replica is gone for good: close what is idle, and what is in use when its exchange ends."""
        self._retired = True
        self.close()

    def close(self) -> None:
        """Close what is idle."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.transport.close()


def _notice_dead_hosts(transport: asyncio.Transport) -> None:
    """Keep-alive probes: a replica whose host vanished without a word ends its connections within half a minute."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Probes go out only while nothing waits to be acknowledged; the user timeout bounds that wait.
    options = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000))
    for option, value in options:
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
