"""Publishes what happens to the blocks as vLLM does, over ZMQ, so that other routers can use this replica.

Owns the sockets and their life. Must never make the engine wait: a reader that is too slow loses batches, sees it from
their numbers and asks for them at the replay endpoint.

Three frames a batch: the topic, the number (8 bytes, big-endian, from 0), the payload (kv_wire.py). A step that changes
nothing sends nothing. A replica starts with nothing resident, and its numbers start again at 0: so a reader that hears
all batches from 0 on knows all. One that comes later gets the past from the replay as far as it is kept, and otherwise
misses what was stored before. After AllBlocksCleared the past is void for everyone. No snapshot is part of vLLM's
protocol; our own routers get theirs another way (reporter.py).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from replica.blocks import Namespace
from replica.kv_wire import KvEventBatch, KvEventLog, encode_batch

if TYPE_CHECKING:
    import zmq

    from replica.kv_replay import History

log = logging.getLogger(__name__)

FLAG, REPLAY_FLAG = "--kv-events-zmq", "--kv-events-replay"

# Batches that wait for one reader, and replies that do; each may be tens of kilobytes.
_QUEUE = 1000
_REPLAY_QUEUE = 100
_KEEP_BYTES = 64 << 20
_LAST_PORT = 65_535

_NOT_OURS = "no network interface has this address; write * for all of them"
_REASONS = {
    errno.EADDRINUSE: "it is in use; choose a free port",
    errno.EADDRNOTAVAIL: _NOT_OURS,
    errno.ENODEV: _NOT_OURS,
    errno.EACCES: "this process may not listen there",
    errno.EINVAL: "it is no ZMQ endpoint; write one such as tcp://*:5557",
}


class KvEventsError(ValueError):
    """KV events cannot be published as asked; the message names the flag and says what to do."""


class KvEventPublisher:
    """A witness of the block pool that publishes: `start` in an event loop, `flush` after each step, `close` at last.

    `endpoint` is listened at if it names no single peer, as with vLLM: one with `*` or `::` (or 0.0.0.0), and `ipc://`;
    else connected to. `replay_endpoint` is listened at. Kept for replay: the latest `keep` batches, of 64 MiB at most.
    Raises KvEventsError for what is no endpoint.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        block_size: int,
        replay_endpoint: str | None = None,
        topic: str = "",
        keep: int = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.endpoint = _checked(FLAG, endpoint)
        self.replay_endpoint = _checked(REPLAY_FLAG, replay_endpoint) if replay_endpoint else None
        self._topic = topic.encode()
        self._keep = keep
        self._clock = clock
        self._log = KvEventLog(block_size)
        self._history: History | None = None
        self._context: zmq.Context[Any] | None = None
        self._sockets: list[zmq.Socket[Any]] = []
        self._send: Callable[[tuple[bytes, bytes, bytes]], object] | None = None
        self._replays: asyncio.Task[None] | None = None

    def stored(self, parent: int | None, key: int, packed: bytes, namespace: Namespace) -> None:
        self._log.stored(parent, key, packed, namespace)

    def removed(self, key: int) -> None:
        self._log.removed(key)

    def cleared(self) -> None:
        self._log.cleared()

    def start(self) -> None:
        """Opens the sockets; then `endpoint` and `replay_endpoint` tell the ports taken. Call it before the first step.

        Raises KvEventsError when an address cannot be used or pyzmq is missing.
        """
        try:
            import zmq
            import zmq.asyncio

            from replica.kv_replay import History, ReplayServer
        except ImportError:
            raise KvEventsError(f"{FLAG}: needs the package pyzmq; pip install 'radixgate[replica]'") from None
        self._history = History(self._topic, self._keep if self.replay_endpoint else 1, _KEEP_BYTES)
        self._context = zmq.Context()
        try:
            publisher = zmq.Socket(self._context, zmq.PUB)
            self._sockets.append(publisher)
            publisher.setsockopt(zmq.SNDHWM, _QUEUE)
            self.endpoint = _open(publisher, FLAG, self.endpoint, listen=_names_no_peer(self.endpoint))
            if self.replay_endpoint:
                router = zmq.asyncio.Socket(self._context, zmq.ROUTER)
                self._sockets.append(router)
                router.setsockopt(zmq.SNDHWM, _REPLAY_QUEUE)
                router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # or what a slow reader has no room for is dropped unseen
                self.replay_endpoint = _open(router, REPLAY_FLAG, self.replay_endpoint, listen=True)
                self._replays = asyncio.create_task(ReplayServer(router, self._history).run(), name="kv replays")
        except Exception:
            self._close_sockets()
            raise
        self._send = partial(publisher.send_multipart, flags=zmq.NOBLOCK)

    def flush(self) -> None:
        """Publishes what happened since the last time, if anything did. Never blocks."""
        if self._send is None or self._history is None:
            return
        if events := self._log.drain():
            self._send(self._history.append(encode_batch(KvEventBatch(self._clock(), events))))

    async def close(self) -> None:
        """Ends the replays and closes the sockets; what is still queued is dropped. May be called twice."""
        self._send = None
        if self._replays is not None:
            self._replays.cancel()
            await asyncio.gather(self._replays, return_exceptions=True)
            self._replays = None
        self._close_sockets()

    def _close_sockets(self) -> None:
        for socket in self._sockets:
            socket.close(linger=0)
        self._sockets = []
        if self._context is not None:
            self._context.term()
            self._context = None


def _checked(flag: str, endpoint: str) -> str:
    form = re.fullmatch(r"tcp://\S+:(\d+|\*)|ipc://\S+", endpoint)
    if not form or ((form[1] or "*") != "*" and int(form[1]) > _LAST_PORT):
        raise KvEventsError(f"{flag} {endpoint!r}: write an endpoint such as tcp://*:5557 or ipc:///run/kv-events")
    return endpoint


def _names_no_peer(endpoint: str) -> bool:
    return endpoint.startswith("ipc://") or any(mark in endpoint for mark in ("*", "::", "//0.0.0.0:"))


def _open(socket: zmq.Socket[Any], flag: str, endpoint: str, *, listen: bool) -> str:
    """Where it listens or what it connects to, with the port it got. Raises KvEventsError."""
    import zmq

    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    try:
        (socket.bind if listen else socket.connect)(endpoint)
    except zmq.ZMQError as error:
        code = error.errno or 0
        raise KvEventsError(f"{flag} {endpoint}: {_REASONS.get(code, os.strerror(code))}") from None
    place = bytes(socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode() if listen else endpoint
    log.info("%s %s (%s)", "listening at" if listen else "connecting to", place, flag)
    return place
