"""What the router's tests run against: a router of their own on real sockets, and upstream servers that do as a test
says.

The scripted upstream stands for any server that the router may meet, well-behaved or not; our own replica is tested
as it is, in test_end_to_end.py.
"""

from __future__ import annotations

import asyncio
import json
import queue
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

from router.app import Router
from router.config import ReplicaConfig, ServeConfig

WAIT_S = 10.0  # for what must happen; nothing waits this long when the router is right


class RunningRouter:
    """A router in a thread of its own, on free ports."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._started: queue.Queue[BaseException | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self.port = 0
        self.control_port = 0

    def start(self) -> None:
        self._thread.start()
        error = self._started.get(timeout=WAIT_S)
        if error is not None:
            self._thread.join(WAIT_S)
            raise error

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        router = Router(self._config)
        try:
            await router.start()
        except Exception as error:
            self._started.put(error)
            return
        self.port = int(router.listen_address.rpartition(":")[2])
        self.control_port = int(router.control_address.rpartition(":")[2])
        self._started.put(None)
        await self._stop.wait()
        await router.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def control(self) -> str:
        return f"http://127.0.0.1:{self.control_port}"


@contextmanager
def running_router(*upstreams: str, **settings: Any) -> Iterator[RunningRouter]:
    """A router in front of `upstreams` (URLs), ready as soon as each of them was probed."""
    settings.setdefault("drain_timeout", 0.5)
    replicas = tuple(ReplicaConfig(url) for url in upstreams)
    router = RunningRouter(
        ServeConfig(**{"listen": "127.0.0.1:0", "control": "127.0.0.1:0", "replicas": replicas, **settings})
    )
    router.start()
    try:
        wait_until(lambda: all(replica["state"] != "unknown" for replica in fleet(router)))
        yield router
    finally:
        router.stop()


class Peer:
    """One accepted connection of a scripted upstream, already past a request's head and body."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""

    def read_head(self) -> bytes:
        """A request's head and what came with it; empty when the router closed the connection."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                return b""
        return self._buffer

    def stop_reading(self) -> None:
        """Leaves the rest of the request where it is until the router closes the connection."""
        poller = select.poll()
        poller.register(self.sock, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        poller.poll(WAIT_S * 1000)

    def read_request(self) -> tuple[bytes, bytes] | None:
        """The next request's head and body, None when the router closed the connection."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                return None
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        self._buffer = rest
        while len(self._buffer) < length:
            if not self._more():
                return None
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return head + b"\r\n", body

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_json(self, value: Any, status: int = 200, extra: str = "") -> None:
        body = json.dumps(value).encode()
        lines = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
        self.send(f"HTTP/1.1 {status} X\r\n{lines}".encode() + body)

    def send_stream_head(self, more: bytes = b"") -> None:
        """`more`: lines, each with its end."""
        kind = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
        self.send(b"HTTP/1.1 200 OK\r\n" + kind + more + b"\r\n")

    def send_event(self, text: str) -> None:
        self.send(chunk(f"data: {text}\n\n".encode()))

    def closed_by_router(self) -> bool:
        """Waits for the router to close."""
        self.sock.settimeout(WAIT_S)
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def kill(self) -> None:
        """End the connection as a killed process does: no goodbye."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.sock.close()

    def _more(self) -> bool:
        try:
            data = self.sock.recv(1 << 16)
        except OSError:
            return False
        self._buffer += data
        return bool(data)


Script = Callable[[Peer, bytes, bytes], None]


class Upstream:
    """A server that answers health probes and model lists, and does `script(peer, head, body)` for everything else."""

    def __init__(self, script: Script, models: tuple[str, ...] = ("m",), port: int = 0) -> None:
        self._script = script
        self._models = models
        self.requests: queue.Queue[tuple[bytes, bytes]] = queue.Queue()
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._sockets: set[socket.socket] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and drop every connection, as a killed server does."""
        self._closed = True
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self._thread.join(WAIT_S)
        for sock in list(self._sockets):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _accept(self) -> None:
        while not self._closed:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = Peer(sock)
            try:
                while (request := peer.read_request()) is not None:
                    self._answer(peer, *request)
            except OSError:
                pass
        self._sockets.discard(sock)

    def _answer(self, peer: Peer, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET /health"):
            peer.send_json({})
        elif head.startswith(b"GET /v1/models"):
            peer.send_json({"object": "list", "data": [{"id": model, "object": "model"} for model in self._models]})
        elif head.startswith(b"GET /radixgate/info"):
            peer.send_json({"error": "what?"}, status=404)
        else:
            self.requests.put((head, body))
            self._script(peer, head, body)


@contextmanager
def upstream(script: Script, models: tuple[str, ...] = ("m",), port: int = 0) -> Iterator[Upstream]:
    server = Upstream(script, models, port)
    try:
        yield server
    finally:
        server.close()


def hello(peer: Peer, head: bytes, body: bytes) -> None:
    """The plainest good answer."""
    peer.send_json({"hello": True})


class Client:
    """A raw client connection."""

    def __init__(self, port: int, buffer: int = 0) -> None:
        self.sock = socket.socket()
        if buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(("127.0.0.1", port))
        self._buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def post(self, body: Any, path: str = "/v1/chat/completions", extra: str = "", version: str = "1.1") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send(
            f"POST {path} HTTP/{version}\r\nHost: t\r\n{extra}Content-Length: {len(data)}\r\n\r\n".encode() + data
        )

    def read_until(self, end: bytes) -> bytes:
        """Everything up to and with `end`. Raises EOFError when the connection ends first."""
        while end not in self._buffer:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError(self._buffer.decode("latin-1"))
            self._buffer += data
        found, _, self._buffer = self._buffer.partition(end)
        return found + end

    def read_exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError(self._buffer.decode("latin-1"))
            self._buffer += data
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def read_to_end(self) -> bytes:
        """Everything until the router closes."""
        parts = [self._buffer]
        while data := self.sock.recv(1 << 16):
            parts.append(data)
        self._buffer = b""
        return b"".join(parts)

    def response(self) -> tuple[int, dict[str, str], bytes]:
        """One response with a length, or in chunks (decoded)."""
        status, headers = self.response_head()
        if "content-length" in headers:
            return status, headers, self.read_exactly(int(headers["content-length"]))
        body = b""
        while size := int(self.read_until(b"\r\n"), 16):
            body += self.read_exactly(size)
            self.read_exactly(2)
        self.read_exactly(2)
        return status, headers, body

    def response_head(self) -> tuple[int, dict[str, str]]:
        lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), headers


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def chat(text: str = "hi", *, stream: bool = False, model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": text}], **more}


def get_json(url: str) -> Any:
    import httpx

    return httpx.get(url, timeout=WAIT_S, verify=False).json()  # reading the CAs each time would take longer


def fleet(router: RunningRouter) -> list[dict[str, Any]]:
    replicas: list[dict[str, Any]] = get_json(router.control + "/fleet")["replicas"]
    return replicas


def receipts(router: RunningRouter) -> list[dict[str, Any]]:
    """The latest first."""
    found: list[dict[str, Any]] = get_json(router.control + "/receipts")["receipts"]
    return found


def wait_until(condition: Callable[[], bool], within_s: float = WAIT_S) -> None:
    """Polls a condition of another thread or process until it holds. Fails after `within_s`."""
    pause = threading.Event()
    for _ in range(int(within_s / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen in time")
