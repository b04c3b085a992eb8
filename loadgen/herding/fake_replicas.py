"""Replicas that compute nothing: they join routers as real ones do, take requests, and answer when they are told to.

For what depends on where requests go and on nothing else: many fit into one process, and a request costs them next to
nothing. Owns their server, their cache (which block keys, without limit) and their reports. Must never answer a request
by itself, nor spend time on one before it is answered: whoever runs them looks into the requests later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence, Set
from typing import cast

import httptools
import msgspec

from radix.blocks import block_keys, namespace_seed
from radix.chat import ChatTokenizer
from radix.events import BlockStored, Registration, Snapshot, encode, pack_keys
from replica import tokenizer
from replica.journal import Journal
from replica.reporter import Reporter

MODEL = "fake"
BLOCK_SIZE = 16
CAPACITY_BLOCKS = 1 << 20
_JSON = "application/json"
_ANSWER = b'{"object":"text_completion","model":"fake","choices":[{"index":0,"text":"","finish_reason":"length"}]}'


class _Prompt(msgspec.Struct):
    prompt: list[int]


_decoder = msgspec.json.Decoder(_Prompt)


class Held:
    """One request that waits for its answer. `arrived` is when it was whole, on the monotonic clock."""

    def __init__(self, replica: FakeReplica, connection: _Connection, body: bytes) -> None:
        self.replica = replica
        self.arrived = time.monotonic()
        self._connection = connection
        self._body = body

    def prompt(self) -> list[int]:
        return _decoder.decode(self._body).prompt

    def answer(self) -> None:
        self._connection.respond(_ANSWER, _JSON)


class FakeReplica:
    """One replica. `took` hears of every request the moment it has come."""

    def __init__(self, name: str, fingerprint: str, took: Callable[[Held], None]) -> None:
        self.name = name
        self.took = took
        self.url = ""
        self._epoch = time.time_ns()
        self._fingerprint = fingerprint
        self._seed = namespace_seed(MODEL)
        self._cached: set[int] = set()
        self._chains: list[BlockStored] = []  # the same in the order in which they came: parents before their children
        self._journal = Journal(name, self._epoch)
        self._reporter: Reporter | None = None
        self._server: asyncio.Server | None = None
        self.connections: set[_Connection] = set()

    @property
    def blocks(self) -> int:
        """How many are cached."""
        return len(self._cached)

    async def start(self, *, controls: Sequence[str] = (), reports: Sequence[str] = ()) -> None:
        """Listens, and joins the routers at `controls` and the Redis URLs in `reports`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._reporter = Reporter(self._journal, self.account, self.snapshot, controls=controls, reports=reports)
        self._reporter.start()

    async def stop(self) -> None:
        if self._reporter is not None:
            await self._reporter.stop()
        if self._server is not None:
            self._server.close()
            for connection in list(self.connections):
                connection.close()
            await self._server.wait_closed()

    def keep(self, prompt: Sequence[int]) -> None:
        """Puts the prompt into the cache, and reports it."""
        keys = self._keys(prompt)
        known = _leading(keys, self._cached)
        fresh = keys[known:]
        if fresh:
            self._cached |= set(fresh)
            stored = BlockStored(keys[known - 1] if known else None, pack_keys(fresh))
            self._chains.append(stored)
            self._journal.append([stored])

    def computed(self, prompts: Iterable[Sequence[int]]) -> int:
        """How many tokens of the prompts it would have to compute, one after the other; none of them is kept."""
        cached = set(self._cached)
        total = 0
        for prompt in prompts:
            keys = self._keys(prompt)
            total += max(len(prompt) - _leading(keys, cached) * BLOCK_SIZE, 1)
            cached.update(keys)
        return total

    def account(self) -> Registration:
        return Registration(
            name=self.name,
            url=self.url,
            epoch=self._epoch,
            models=(MODEL,),
            block_size=BLOCK_SIZE,
            capacity_blocks=CAPACITY_BLOCKS,
            tokenizer=str(tokenizer.directory().resolve()),
            tokenizer_fingerprint=self._fingerprint,
        )

    def snapshot(self) -> Snapshot:
        return self._journal.snapshot(tuple(self._chains))

    def _keys(self, prompt: Sequence[int]) -> list[int]:
        return block_keys(prompt, BLOCK_SIZE, self._seed)

    def page(self, path: str) -> tuple[bytes, str] | None:
        """What routers ask a replica for besides completions: body and content type."""
        match path:
            case "/health":
                return b"", "text/plain"
            case "/v1/models":
                return msgspec.json.encode({"object": "list", "data": [{"id": MODEL, "object": "model"}]}), _JSON
            case "/radixgate/info":
                return msgspec.json.encode(self.account()), _JSON
            case "/radixgate/blocks":
                return encode(self.snapshot()), "application/msgpack"
        return None


def fake_replicas(count: int, took: Callable[[Held], None]) -> list[FakeReplica]:
    """Not started yet."""
    fingerprint = ChatTokenizer.load(tokenizer.directory()).fingerprint
    return [FakeReplica(f"r{index}", fingerprint, took) for index in range(count)]


def _leading(keys: Sequence[int], cached: Set[int]) -> int:
    """How many of the first blocks are cached."""
    return next((at for at, key in enumerate(keys) if key not in cached), len(keys))


class _Connection(asyncio.Protocol):
    """The server's side of one connection; routers send one request at a time on it."""

    def __init__(self, replica: FakeReplica) -> None:
        self._replica = replica
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._path = ""
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._replica.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._replica.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_message_begin(self) -> None:
        self._path = ""
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._path += url.decode("latin-1")

    def on_body(self, piece: bytes) -> None:
        self._body.append(piece)

    def on_message_complete(self) -> None:
        if self._path == "/v1/completions":
            self._replica.took(Held(self._replica, self, b"".join(self._body)))
            return
        page = self._replica.page(self._path)
        if page is None:
            self.respond(b"{}", _JSON, "404 Not Found")
        else:
            self.respond(*page)

    def respond(self, body: bytes, kind: str, status: str = "200 OK") -> None:
        if self._transport is not None:
            head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
            self._transport.write(head.encode() + body)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
