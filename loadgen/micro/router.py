"""What the router's own code costs: whole requests through the data plane, with transports that go nowhere; and the
default policy's choice by itself.

Owns one section of `make bench`. The figures leave out the kernel's and the event loop's share, which is why they
repeat well on a noisy machine; they are CPU times, the best of several rounds.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from loadgen.micro.row import Row, in_fresh_process
from router.decide import Decider
from router.downstream import Downstream, Limits
from router.fleet import Address, Fleet, Replica
from router.gateway import Gateway
from router.outbox import Outbox
from router.readers import PromptReaders
from router.residency import Residency
from router.telemetry import Telemetry
from router.truth import LocalTruth
from router.upstream import ConnectionPool, UpstreamConnection
from scoring.decision import Query
from scoring.kv import Kv
from scoring.learned import Learned
from scoring.ledger import ReplicaLoad
from scoring.policies import make_policy

T = TypeVar("T")

TABLE = "Router: CPU µs of its own code, text mode, 4 replicas"
ROUNDS = 7
EVENT = b"data: " + b"y" * 180 + b"\n\n"
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n" + b"x" * 1000
CHUNKS = 64
CHOICE_TABLE = "Router: CPU µs of one choice by `kv`"
FLEETS = (1, 4, 8, 64)
CHOICES = 500
LATER_S = 1.0  # the choices are made so long after a loaded fleet got its first requests


class Nowhere(asyncio.Transport):
    """A transport whose bytes go nowhere."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


class Desk:
    """A data plane with one client and one kept connection to each of four replicas."""

    def __init__(self, policy: str) -> None:
        self.fleet = Fleet()
        self.outbox = Outbox(lambda flush: None)
        telemetry = Telemetry()
        residency = Residency(self.fleet, LocalTruth(self.fleet), memory_blocks=16_000, memory_ttl_s=900.0)
        gateway = Gateway(
            self.fleet,
            Decider(make_policy(policy, random.Random(1)), residency, telemetry),
            PromptReaders(self.fleet, {}, cast(Any, None), cast(Any, None)),
            telemetry,
            Limits(),
            self.outbox,
            attempts=5,
            response_timeout_s=600.0,
            clock=time.monotonic,
            suspect=lambda replica: None,
        )
        self.connections = [self._replica(f"r{number}") for number in range(4)]
        self.client = Downstream(gateway, set())
        self.client.connection_made(Nowhere())

    def _replica(self, name: str) -> UpstreamConnection:
        pool = ConnectionPool("127.0.0.1", 1, None, self.outbox, connect_timeout_s=1.0)
        replica = Replica(name, Address("http://127.0.0.1:1"), pool)
        replica.models = ("m",)
        self.fleet.add(replica)
        self.fleet.mark_up(replica)
        connection = UpstreamConnection(pool)
        connection.connection_made(Nowhere())
        pool.release(connection)
        return connection

    def ask(self, request: bytes) -> UpstreamConnection:
        """The connection that the request went to."""
        self.client.data_received(request)
        self.outbox.flush()
        return next(connection for connection in self.connections if connection.exchange is not None)

    def whole(self, request: bytes) -> None:
        self.ask(request).data_received(ANSWER)
        self.outbox.flush()

    def stream(self, request: bytes) -> None:
        receive = self.ask(request).data_received
        receive(STREAM_HEAD)
        for _ in range(CHUNKS):
            receive(CHUNK)
        receive(b"0\r\n\r\n")


def router_section() -> list[Row]:
    requests = [Row(TABLE, policy, in_fresh_process(costs, policy)) for policy in ("kv", "least_load")]
    return requests + [Row(CHOICE_TABLE, what, figures) for what, figures in in_fresh_process(choices).items()]


def costs(policy: str) -> dict[str, float]:
    small = [request_of([f"Hello, number {number}. " + "x" * 90]) for number in range(256)]
    # The turns of 64 conversations that share an 8 KB beginning; every last message is new.
    large = [request_of(["s" * 8000, f"{number % 64} " * 6000, f"{number} " * 60]) for number in range(512)]
    desk = Desk(policy)
    request = best(desk.whole, small)
    return {
        "small request": request,
        "32 KB request": best(desk.whole, large),
        "chunk of a stream": (best(desk.stream, small) - request) / CHUNKS,
    }


def choices() -> dict[str, dict[str, float]]:
    """Per line, CPU µs among so many replicas, of a prompt that none of them holds."""
    policy = Kv(random.Random(1))
    query = Query(3000, 256, now=LATER_S, answer_s=3.0)

    def choice(loads: list[ReplicaLoad]) -> ReplicaLoad:
        return loads[policy.choose(query, loads, [0] * len(loads)).index]

    def served(loads: list[ReplicaLoad]) -> None:
        booking = choice(loads).book(query.prompt_tokens, query.prompt_tokens, LATER_S)
        booking.first_byte(LATER_S)
        booking.release(LATER_S)

    return {
        "idle": {str(count): best(choice, [_loads(count, 0)] * CHOICES) for count in FLEETS},
        "loaded": {str(count): best(choice, [_loads(count, 6)] * CHOICES) for count in FLEETS},
        "loaded, booked to the end": {str(count): best(served, [_loads(count, 6)] * CHOICES) for count in FLEETS},
    }


def _loads(count: int, most_open: int) -> list[ReplicaLoad]:
    """Replicas that are alike but for their speed and for what is open there: up to so many waiting and decoding."""
    chance = random.Random(3)
    loads = [ReplicaLoad(f"r{number}", capacity_tokens=1_000_000) for number in range(count)]
    for load in loads if most_open else ():
        load.learned = Learned(1 / chance.uniform(6000, 9000), slowdown=0.01)
        for _ in range(chance.randint(1, most_open)):
            load.book(4000, chance.randint(100, 4000), 0.0)
            load.book(4000, 1, 0.0).first_byte(0.5)
    return loads


def best(serve: Callable[[T], object], requests: list[T]) -> float:
    """CPU µs a request, of the best round."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for request in requests:
            serve(request)
        rounds.append((time.process_time() - started) / len(requests))
    return min(rounds) * 1e6


def request_of(messages: list[str]) -> bytes:
    said = [{"role": "user", "content": text} for text in messages]
    body = json.dumps({"model": "m", "max_tokens": 64, "messages": said}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nAuthorization: Bearer k\r\n"
    )
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
