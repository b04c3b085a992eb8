"""A reader of vLLM's KV events as other routers have one: typed structs, a SUB socket, and a DEALER for replays.

Knows vLLM's format only, and nothing of ours but how keys are derived: that is checked, block by block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from radix.blocks import block_keys, namespace_seed

PATIENCE_S = 10.0


class Event(msgspec.Struct, omit_defaults=True, tag=True):
    """The base of all events: a map with its class's name under "type"."""


class BlockStored(Event):
    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None
    group_idx: int | None = None


class BlockRemoved(Event):
    block_hashes: list[int | bytes]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(Event):
    pass


class Batch(msgspec.Struct, array_like=True, omit_defaults=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


decode = msgspec.msgpack.Decoder(Batch).decode


class Residency:
    """What a reader believes to be resident: key -> parent's key. Refuses what no true stream can say."""

    def __init__(self, model: str = "m") -> None:
        self.parents: dict[int, int | None] = {}
        self._model = model

    def apply(self, payload: bytes) -> None:
        batch = decode(payload)
        assert batch.data_parallel_rank == 0
        assert batch.events, "an empty batch"
        for event in batch.events:
            if isinstance(event, BlockStored):
                self._store(event)
            elif isinstance(event, BlockRemoved):
                assert event.medium == "GPU"
                for key in event.block_hashes:
                    del self.parents[int(key)]
                    assert key not in self.parents.values(), "removed before its child"
            else:
                self.parents.clear()

    def _store(self, event: BlockStored) -> None:
        keys = [int(key) for key in event.block_hashes]
        parent = None if event.parent_block_hash is None else int(event.parent_block_hash)
        assert event.medium == "GPU"
        assert event.extra_keys is None or len(event.extra_keys) == len(keys)
        assert parent is None or parent in self.parents, "stored before its parent"
        assert keys == block_keys(event.token_ids, event.block_size, self._seed(event) if parent is None else parent)
        for key in keys:
            assert key not in self.parents, "stored twice without being removed"
            self.parents[key] = parent
            parent = key

    def _seed(self, event: BlockStored) -> int:
        first = list((event.extra_keys or [None])[0] or ())
        if event.lora_name:
            assert first.pop(0) == event.lora_name
        return namespace_seed(self._model, event.lora_name or "", *first)


class Reader:
    """The sockets of one reader, closed at the end of `async with`. `small`: they take as little ahead as they can."""

    def __init__(self, *, small: bool = False) -> None:
        self._context = zmq.asyncio.Context()
        self._small = small
        self._sockets: list[zmq.asyncio.Socket] = []

    def socket(self, kind: int) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        self._sockets.append(socket)
        socket.setsockopt(zmq.LINGER, 0)
        if self._small:
            socket.setsockopt(zmq.RCVHWM, 1)
            socket.setsockopt(zmq.RCVBUF, 4096)
        return socket

    def subscribe(self, endpoint: str, topic: str = "") -> zmq.asyncio.Socket:
        socket = self.socket(zmq.SUB)
        socket.subscribe(topic)
        socket.connect(endpoint)
        return socket

    async def ask(self, endpoint: str, first: int) -> zmq.asyncio.Socket:
        socket = self.socket(zmq.DEALER)
        socket.connect(endpoint)
        await socket.send_multipart([b"", first.to_bytes(8, "big")])
        return socket

    async def replay(self, endpoint: str, first: int) -> list[tuple[int, bytes]]:
        socket = await self.ask(endpoint, first)
        answer = await rest_of_answer(socket)
        socket.close()
        return answer

    async def __aenter__(self) -> Reader:
        return self

    async def __aexit__(self, *_: object) -> None:
        for socket in self._sockets:
            socket.close(linger=0)
        self._context.term()


async def receive(socket: zmq.asyncio.Socket) -> list[bytes]:
    async with asyncio.timeout(PATIENCE_S):
        return await socket.recv_multipart()


async def rest_of_answer(socket: zmq.asyncio.Socket) -> list[tuple[int, bytes]]:
    """(number, payload) of every reply up to the end, as readers of vLLM 0.26 and later take them apart."""
    replies: list[tuple[int, bytes]] = []
    while True:
        delimiter, topic, seq, payload = await receive(socket)
        assert delimiter == b""
        if not payload:
            assert (topic, seq) == (b"", b"\xff" * 8)
            return replies
        replies.append((int.from_bytes(seq, "big"), payload))


def residency(batches: Iterable[tuple[int, bytes]]) -> dict[int, int | None]:
    """What a reader knows that heard these batches, all that there were, in order."""
    known = Residency()
    for expected, (seq, payload) in enumerate(batches):
        assert seq == expected, "batches are numbered from 0, without gaps"
        known.apply(payload)
    return known.parents
