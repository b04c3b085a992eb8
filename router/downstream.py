"""The client side of the data plane: one protocol object a connection, whose callbacks read as the connection's life.

Owns reading requests (within limits), their order on the connection, and writing answers. Requests that a client
pipelines are answered one after the other. Must never choose a replica or speak to one: a whole request goes to the
gateway, which attaches an exchange.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from router.errors import Refusal, internal_error
from router.outbox import Outbox
from router.request import CONTINUE, ChunkedBody, Request, check_head, read_head

log = logging.getLogger("radixgate.downstream")

LINGER_S = 2.0
CRLF = b"\r\n"
MAX_PIPELINED = 64
CHECKED_HEAD = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask of a connection. Sizes in bytes, times in seconds."""

    max_body: int = 64 * 1024 * 1024
    max_head: int = 64 * 1024
    read_timeout_s: float = 30.0
    idle_timeout_s: float = 120.0


class Cancellable(Protocol):
    """The exchange under way, as its client sees it."""

    def cancel(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def sweep(self, now: float) -> None: ...


class Gateway(Protocol):
    """Takes whole requests."""

    limits: Limits
    outbox: Outbox

    def open(self, client: Downstream, request: Request) -> None:
        """Answer at once, or attach an exchange to the client and start it."""
        ...

    def refused(self, refusal: Refusal) -> None:
        """A request was refused before it was whole."""
        ...


class Downstream(asyncio.Protocol):
    """One client connection."""

    def __init__(self, gateway: Gateway, connections: set[Downstream]) -> None:
        self._gateway = gateway
        self._limits = gateway.limits
        self._outbox = gateway.outbox
        self._connections = connections
        self._unread = b""  # the beginning of a head, or requests that wait behind too many pipelined ones
        self._request: Request | None = None  # its head is read, its body is coming
        self._parts: list[bytes] = []
        self._missing = 0
        self._chunked: ChunkedBody | None = None
        self._waiting: deque[Request] = deque()  # pipelined behind the one being answered
        self._exchange: Cancellable | None = None
        self._answering = False
        self._going_on = False
        self._closing = False
        self._lingering = False  # closing, but still reading what nobody wants
        self._unsent = 0  # bytes of the last answer that the client had not taken at the last sweep
        self._paused = False  # the client reads more slowly than we write
        self._owes_continue = False
        self._heads = 0  # read so far
        self._unread_head = -1  # the number of the one that was incomplete at the last sweep
        self._refusal: Refusal | None = None  # written once what came before it is answered
        self.transport: asyncio.Transport
        self.forwarded_for = b""
        self.stirred = True  # bytes came, or an answer ended, since the sweeper last looked
        self.quiet_since = 0.0

    # The life of the connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.forwarded_for = str(peer[0]).encode() if isinstance(peer, tuple) else b"unknown"
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._closing or self._refusal is not None:
            return
        self.stirred = True
        if self._unread:
            data = self._unread + data
            self._unread = b""
        try:
            while data:
                if self._request is not None:
                    data = self._read_body(self._request, data)
                elif len(self._waiting) < MAX_PIPELINED:
                    data = self._read_head(data)
                else:
                    self._unread = data
                    break
        except Refusal as refusal:
            self._refuse(refusal)

    def eof_received(self) -> None:
        return None  # nobody reads the answer any more: the transport closes

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        self._closing = True
        self._waiting.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()

    def pause_writing(self) -> None:
        self._paused = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._paused = False
        if self._exchange is not None:
            self._exchange.resume()
        self._go_on()

    # The request. Each step returns what it left unread.

    def _read_head(self, data: bytes) -> bytes:
        if data[0] in CRLF:  # a blank line before the request line is to be ignored (RFC 9112, 2.2)
            data = data.lstrip(b"\r\n")
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            self._wait_for_head(data)
            return b""
        if end > self._limits.max_head:
            raise self._head_too_large()
        request = read_head(data[:end])
        self._heads += 1
        rest = data[end:]
        if request.chunked:
            self._chunked = ChunkedBody()
        elif request.length <= len(rest):
            request.body = rest[: request.length]
            self._complete(request)
            return rest[request.length :]
        else:
            self._check_size(request.length)
            self._missing = request.length
        self._request = request
        if request.expects_continue and not rest:
            if self._answering:
                self._owes_continue = True
            else:
                self.write_soon(CONTINUE)
        return rest

    def _wait_for_head(self, data: bytes) -> None:
        if len(data) > self._limits.max_head:
            raise self._head_too_large()
        if 0 < len(data) < CHECKED_HEAD:
            check_head(data)  # garbage is told so at once, not when the time for reading is over
        self._unread = data

    def _read_body(self, request: Request, data: bytes) -> bytes:
        if self._chunked is not None:
            return self._read_chunks(request, self._chunked, data)
        if len(data) < self._missing:
            self._missing -= len(data)
            self._parts.append(data)
            return b""
        self._parts.append(data[: self._missing])
        rest = data[self._missing :]
        request.body = b"".join(self._parts)
        self._end_body(request)
        return rest

    def _read_chunks(self, request: Request, body: ChunkedBody, data: bytes) -> bytes:
        end = body.feed(data)
        self._check_size(body.size)
        if end < 0:
            return b""
        request.body = body.decoded()
        request.lines += b"content-length: %d\r\n" % len(request.body)
        self._end_body(request)
        return data[end:]

    def _end_body(self, request: Request) -> None:
        self._request = self._chunked = None
        self._parts = []
        self._complete(request)

    def _complete(self, request: Request) -> None:
        self._check_size(len(request.body))
        if self._answering or self._paused:
            self._waiting.append(request)
            self.transport.pause_reading()
        else:
            self._answer(request)

    # The answer.

    def attach(self, exchange: Cancellable) -> None:
        """What answers the request under way."""
        self._exchange = exchange

    def write_soon(self, data: bytes) -> None:
        """Write a whole answer, together with those of others, before the loop waits again."""
        self._outbox.write(self.transport, data)

    def stream(self) -> Callable[[bytes], None]:
        """Where the bytes of a longer answer go, each piece at once: so that a slow client is noticed at once."""
        self._outbox.flush()
        return self.transport.write

    def decline(self, request: Request, refusal: Refusal) -> None:
        """Answer the request under way with an error; the connection goes on."""
        self.write_soon(refusal.response(close=not request.keep_alive, head_only=request.head_only))
        self.answered(keep_alive=request.keep_alive)

    def answered(self, *, keep_alive: bool) -> None:
        """The answer to the request under way is written whole."""
        self._exchange = None
        self._answering = False
        self.stirred = True
        if not keep_alive:
            self._close()
            return
        if self._owes_continue and not self._waiting:
            self._owes_continue = False
            if self._request is not None:
                self.write_soon(CONTINUE)
        if self._waiting or self._refusal is not None:
            self._go_on()

    def abort(self) -> None:
        """The answer cannot be completed: only breaking the connection tells the client so."""
        self._exchange = None
        self._closing = True
        self.transport.abort()

    def close_when_idle(self) -> None:
        """Shut down: at once when nothing is being read or answered."""
        if not self._answering and self._request is None and not self._unread:
            self._close()

    def sweep(self, now: float) -> None:
        """Called about once a second: end a connection that has been quiet for too long."""
        if self._exchange is not None:
            self._exchange.sweep(now)
        # A head has its time as a whole: bytes that drip in do not prolong it.
        dripping = bool(self._unread) and self._unread_head == self._heads
        self._unread_head = self._heads if self._unread else -1
        if self._answering or (self.stirred and not dripping):
            self.stirred = False
            self.quiet_since = now
            return
        unsent = self.transport.get_write_buffer_size() if self._closing or self._paused else 0
        if unsent != self._unsent:  # the client takes what it was sent: it has time, as long as it takes some
            self._unsent = unsent
            self.quiet_since = now
        self._end_if_quiet(now - self.quiet_since)

    def _end_if_quiet(self, quiet: float) -> None:
        limits = self._limits
        if self._unsent:
            if quiet > limits.read_timeout_s:
                self.transport.abort()
        elif self._lingering:
            if quiet > LINGER_S:
                self.transport.abort()
        elif self._closing:
            pass  # the transport is closing by itself
        elif self._request is None and not self._unread:
            if quiet > limits.idle_timeout_s:
                self._close()
        elif quiet > limits.read_timeout_s:
            self._refuse(
                Refusal(
                    408,
                    f"The request stopped coming for {limits.read_timeout_s:g} s before it was whole "
                    "(serve --read-timeout).",
                    code="request_timeout",
                )
            )

    def _answer(self, request: Request) -> None:
        self._answering = True
        try:
            self._gateway.open(self, request)
        except Exception:
            log.exception("a request could not be opened")
            exchange, self._exchange = self._exchange, None
            if exchange is not None:
                exchange.cancel()
            self._answering = False
            self._refuse(internal_error())

    def _go_on(self) -> None:
        """Answer what waits. A loop, not a recursion: answers that need no replica are written within `_answer`."""
        if self._going_on:
            return
        self._going_on = True
        while self._waiting and not self._answering and not self._closing and not self._paused:
            self._answer(self._waiting.popleft())
            if not self._waiting and self._refusal is None:
                self.transport.resume_reading()
                if self._unread:
                    self.data_received(b"")
        self._going_on = False
        if self._refusal is not None and not (self._answering or self._waiting or self._closing):
            self._refuse(self._refusal)

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_body:
            raise Refusal(
                413,
                f"The request body exceeds the limit of {self._limits.max_body} bytes (serve --max-body).",
                code="request_too_large",
            )

    def _head_too_large(self) -> Refusal:
        return Refusal(
            431,
            f"The request's headers exceed the limit of {self._limits.max_head} bytes (serve --max-head).",
            code="headers_too_large",
        )

    def _refuse(self, refusal: Refusal) -> None:
        """Answer a request that cannot be read, and close: what follows on the connection cannot be trusted."""
        self._request = self._chunked = None
        self._parts = []
        self._unread = b""
        if self._answering or self._waiting:
            self._refusal = refusal
            self.transport.pause_reading()
            return
        self._gateway.refused(refusal)
        self.write_soon(refusal.response(close=True))
        self._linger()

    def _linger(self) -> None:
        """Close, but go on reading (and dropping) for a moment: closing on unread data would reset the connection, and
        the client might never see the answer.
        """
        self._closing = self._lingering = True
        self.stirred = True
        self._outbox.flush()
        self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _close(self) -> None:
        if self._waiting or self._unread or self._request is not None:
            self._waiting.clear()
            self._linger()
            return
        self._closing = True
        self._outbox.flush()
        self.transport.close()
