"""One request's life between its client and a replica: choose, send, relay, and on failure choose again.

Owns the request from the moment it is read whole until its answer is: the replica it is on, its booking, its receipt,
its retries. Every way out (answered, failed, client gone, timed out) passes through `_settle`, once. Must never parse
a body.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine

from router.downstream import Downstream
from router.errors import Refusal, internal_error, replica_failed, unavailable
from router.fleet import Replica
from router.framing import ChunkedFraming, Framing
from router.heads import ResponseHead, relayed_head
from router.placement import Carrier, Placement, Route
from router.request import Request
from router.upstream import UpstreamConnection
from scoring.decision import Receipt
from scoring.ledger import Booking

log = logging.getLogger("radixgate.exchange")

CLIENT_LEFT = 499  # nginx's status for it; only in metrics and receipts, nobody is there to read it


# What says that the replica is not there, rather than that we or the network are short of something.
_REFUSALS = (errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)
_OUR_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)


class Exchange:
    """One request under way."""

    # Defaults live in the class: an exchange is made for every request, and most of these never change in it.
    _route: Route
    _attempt = 0
    _tried: frozenset[Replica] = frozenset()
    _replica: Replica | None = None
    _booking: Booking | None = None
    _receipt: Receipt | None = None
    _connection: UpstreamConnection | None = None
    _task: asyncio.Task[None] | None = None
    _framing: Framing | None = None
    _placement: Placement | None = None
    _decoded: bytearray | None = None  # what an HTTP/1.0 client is to get next
    _head_sent = False
    _event_stream = False
    _cached_tokens: int | None = None
    _paused = False
    _status = 0
    _quiet_since = 0.0

    def __init__(self, carrier: Carrier, client: Downstream, request: Request, request_id: str, started: float) -> None:
        self._carrier = carrier
        self._client = client
        self._request = request
        self.request_id = request_id
        self._started = started
        self._id_line = b"" if request.request_id else b"x-request-id: %s\r\n" % request_id.encode()
        self.bodyless = request.head_only

    def begin(self, route: Route) -> None:
        """Send the request on its way."""
        self._route = route
        self._try()

    def begin_later(self, route: Awaitable[Route]) -> None:
        """Send the request once its prompt is read (long prompts are tokenized off the event loop)."""
        self._start(self._await_route(route))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._guard(work))

    async def _guard(self, work: Coroutine[None, None, None]) -> None:
        """The one place where an exchange waits. Whatever goes wrong there, the client gets an answer."""
        try:
            await work
        except Refusal as refusal:
            self._task = None
            self._refuse(refusal)
        except Exception:
            log.exception("request %s could not be sent", self.request_id)
            self._task = None
            self._refuse(internal_error())

    async def _await_route(self, awaited: Awaitable[Route]) -> None:
        route = await awaited
        self._task = None
        self.begin(route)

    # Attempts.

    def _try(self) -> None:
        self._attempt += 1
        try:
            placement = self._route.choose(self._tried)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        replica = self._replica = placement.replica
        self._placement = placement
        self._booking = placement.booking
        self._note_attempt(placement.receipt)
        # What is not safe to repeat gets a fresh connection: a kept one may close just as it is used.
        connection = replica.connections.take() if self._route.repeatable else None
        if connection is not None:
            self._send(replica, connection)
        else:
            self._start(self._connect_and_send(replica))

    async def _connect_and_send(self, replica: Replica) -> None:
        try:
            connection = await replica.connections.connect()
        except (OSError, TimeoutError) as error:
            self._task = None
            self._cannot_connect(replica, error)
            return
        self._task = None
        self._send(replica, connection)

    def _cannot_connect(self, replica: Replica, error: OSError | TimeoutError) -> None:
        if isinstance(error, OSError) and error.errno in _OUR_SHORTAGES:
            self._give_up_place("failed")
            raise unavailable(f"The router cannot open another connection: {error.strerror}.")
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            self._carrier.fleet.mark_down(replica, f"cannot connect: {error.strerror}")
        self._tried |= {replica}
        self._carrier.suspect(replica)
        self._attempt_failed(f"cannot connect: {error or 'no answer in time'}", again=True)

    def _send(self, replica: Replica, connection: UpstreamConnection) -> None:
        self._connection = connection
        request = self._request
        head = b"%s %s%s%s%sx-forwarded-for: %s%s\r\n%s\r\n" % (
            request.method,
            replica.base_path,
            request.target,
            replica.host_line,
            request.lines,
            request.forwarded_for,
            self._client.forwarded_for,
            self._id_line,
        )
        connection.send(self, head, request.body, keep=self._route.repeatable)
        if self._paused:
            connection.pause()

    def _attempt_failed(self, reason: str, *, again: bool) -> None:
        """No byte of an answer came. Try elsewhere while that makes sense, else tell the client."""
        self._give_up_place("failed")
        replica = self._replica
        if again and self._attempt < self._carrier.attempts:
            self._carrier.telemetry.retries += 1
            self._try()
        elif again:
            self._refuse(unavailable(f"{self._attempt} attempts failed; the last: {_name(replica)}: {reason}."))
        else:
            self._refuse(replica_failed(f"Replica {_name(replica)} failed: {reason}."))

    def _refuse(self, refusal: Refusal) -> None:
        self._settle(refusal.status, refusal.code or "refused")
        self._client.decline(self._request, refusal)

    # The response, as the upstream connection finds it.

    def on_head(self, head: bytes, read: ResponseHead, framing: Framing) -> bytes | None:
        if read.status == 503 and self._worth_another_try():
            assert self._replica is not None
            self._tried |= {self._replica}
            self._connection = None
            self._attempt_failed("it answered 503", again=True)
            return None
        if read.status >= 400:
            self._refused_there()
        request = self._request
        self._framing = framing
        self._status = read.status
        self._event_stream = read.event_stream
        self._head_sent = True
        self._cached_tokens = read.cached_tokens
        if not read.event_stream:
            self.on_first_byte()
        closes = not request.keep_alive or framing.close_ends()
        if not (request.http10 and isinstance(framing, ChunkedFraming)):
            chunked10 = request.http10 and read.chunked  # a HEAD's answer: no body, and no word of chunks either
            return relayed_head(head, self._extra_lines(closes), read, dechunk=chunked10)
        framing.payload = self._decoded = bytearray()
        self._decoded += relayed_head(head, self._extra_lines(closes), read, dechunk=True)
        return head

    def on_first_byte(self) -> None:
        """Of a stream, the body's, not the head's: some engines send that before they have computed anything."""
        now = self._carrier.clock()
        if self._booking is not None:
            # An answer that is no stream may have come whole. Where tokens were estimated, the replica counts others.
            exact = self._receipt is not None and self._receipt.mode == "exact"
            cached_tokens = self._cached_tokens if exact else None
            self._booking.first_byte(now, teaches=self._event_stream, cached_tokens=cached_tokens)
        ttft = now - self._started
        telemetry = self._carrier.telemetry
        telemetry.ttft.add(ttft)
        if self._cached_tokens is not None:
            telemetry.cached_tokens += self._cached_tokens
        receipt = self._receipt
        if receipt is not None:
            receipt.ttft_s = ttft
            receipt.cached_tokens = self._cached_tokens

    def write_whole(self, data: bytes) -> None:
        if self._decoded is None:
            self._client.write_soon(data)
        else:
            self._write_decoded(data)

    def sink(self) -> Callable[[bytes], None]:
        return self._client.stream() if self._decoded is None else self._write_decoded

    def _write_decoded(self, data: bytes) -> None:
        """To an HTTP/1.0 client: the head and the chunks' contents, without their framing."""
        assert self._decoded is not None
        self._client.stream()(bytes(self._decoded))
        self._decoded.clear()

    def on_end(self) -> None:
        assert self._framing is not None
        keep_alive = self._request.keep_alive and not self._framing.close_ends()
        self._connection = None
        self._settle(self._status, "answered")
        self._client.answered(keep_alive=keep_alive)

    def on_lost(self, reason: str, *, answered: bool) -> None:
        connection, self._connection = self._connection, None
        replica = self._replica
        assert connection is not None
        assert replica is not None
        self._carrier.suspect(replica)
        if answered:
            self._end_broken(
                Refusal(502, f"Replica {replica.name} failed: {reason}.", code="replica_lost", kind="server_error")
            )
            return
        if not connection.reused:
            self._tried |= {replica}  # a kept connection may just have been stale; a new one says the replica is ill
        self._attempt_failed(reason, again=self._route.repeatable)

    def _end_broken(self, refusal: Refusal) -> None:
        """The answer had begun and cannot be completed."""
        client, framing = self._client, self._framing
        assert framing is not None
        self._carrier.telemetry.streams_broken += 1
        self._settle(refusal.status, refusal.code or "broken")
        ending = self._ending(framing, refusal)
        if ending is None:
            client.abort()
        else:
            client.write_soon(ending)
            client.answered(keep_alive=self._request.keep_alive and not framing.close_ends())

    def _ending(self, framing: Framing, refusal: Refusal) -> bytes | None:
        """What ends an event stream cleanly; None where nothing can, and for any other body."""
        if not self._event_stream:
            return None
        # The blank line ends whatever event the replica may have left half-written.
        event = b"\n\n" + refusal.sse_event()
        if self._request.http10 or framing.close_ends():
            return event
        if isinstance(framing, ChunkedFraming) and framing.at_boundary():
            return b"%x\r\n%s\r\n0\r\n\r\n" % (len(event), event)
        return None

    # What the client does meanwhile.

    def cancel(self) -> None:
        """The client left: so does the request."""
        self._carrier.telemetry.clients_left += 1
        self._drop()
        self._settle(CLIENT_LEFT, "client_left")

    def pause(self) -> None:
        """The client reads more slowly than the replica writes."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    def sweep(self, now: float) -> None:
        """Called about once a second: end an exchange in which nothing has moved for too long."""
        connection = self._connection
        if connection is not None and connection.stirred:
            connection.stirred = False
            self._quiet_since = now
        elif not self._quiet_since:
            self._quiet_since = now
        limit = self._carrier.response_timeout_s
        if now - self._quiet_since < limit:
            return
        refusal = replica_failed(
            f"Nothing moved for {limit:g} s (serve --response-timeout).", code="response_timeout", status=504
        )
        self._drop()
        if self._paused:
            self._settle(CLIENT_LEFT, "client_stopped_reading")
            self._client.abort()
        elif self._head_sent:
            self._end_broken(refusal)
        else:
            self._give_up_place("timed_out")
            self._refuse(refusal)

    def _drop(self) -> None:
        """Let go of the replica, which sees its client leave."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    # Books.

    def _worth_another_try(self) -> bool:
        assert self._replica is not None
        return (
            self._route.repeatable
            and self._attempt < self._carrier.attempts
            and self._route.has_other(self._tried | {self._replica})
        )

    def _give_up_place(self, outcome: str) -> None:
        """This attempt is over, and left nothing on its replica."""
        if self._booking is not None:
            self._booking.release(self._carrier.clock())
        if self._placement is not None:
            self._placement.unplaced()
        if self._receipt is not None:
            self._receipt.outcome = outcome

    def _refused_there(self) -> None:
        """The replica answers with an error: it computed nothing, and nothing can be learned from how long it took."""
        if self._booking is not None:
            self._booking.release(self._carrier.clock())
        if self._placement is not None:
            self._placement.unplaced()

    def _note_attempt(self, receipt: Receipt | None) -> None:
        if receipt is not None:
            receipt.attempts = self._attempt
            self._receipt = receipt

    def _settle(self, status: int, outcome: str) -> None:
        """The end, however it came."""
        now = self._carrier.clock()
        if self._booking is not None:
            self._booking.release(now)
        duration = now - self._started
        telemetry = self._carrier.telemetry
        replica = self._replica
        if replica is None or self._carrier.fleet.get(replica.name) is not replica:
            telemetry.answers[""][status] += 1  # a replica that has left must not leave a name behind
        else:
            telemetry.answers[replica.name][status] += 1
        telemetry.duration.add(duration)
        receipt = self._receipt
        if receipt is not None:
            receipt.status = status
            receipt.outcome = outcome
            receipt.duration_s = duration
            if self._event_stream and outcome == "answered" and status == 200 and receipt.ttft_s is not None:
                self._carrier.answer_times.observe(receipt.output_tokens, duration - receipt.ttft_s)

    def _extra_lines(self, closes: bool) -> bytes:
        assert self._replica is not None
        lines = self._replica.name_line + self._id_line
        return lines + b"connection: close\r\n" if closes else lines


def _name(replica: Replica | None) -> str:
    return "?" if replica is None else replica.name
