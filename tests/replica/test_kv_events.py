"""Routers made for vLLM can follow our blocks: byte by byte, over real sockets, and after they missed something."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvloop
import zmq
import zmq.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from radix.blocks import pack_tokens
from replica.blocks import BlockPool, BlockTable, Namespace
from replica.kv_events import KvEventPublisher, KvEventsError
from replica.kv_replay import History
from replica.kv_wire import Cleared, KvEvent, KvEventBatch, KvEventLog, Removed, Stored, encode_batch
from tests.replica.kv_reader import PATIENCE_S, Reader, Residency, receive, residency, rest_of_answer
from tests.replica.replay import Replay

ANYWHERE = "tcp://127.0.0.1:*"
PLAIN = Namespace("m")
BIG = 2**64 - 1


@asynccontextmanager
async def publishing(endpoint: str = ANYWHERE, **settings: Any) -> AsyncIterator[KvEventPublisher]:
    publisher = KvEventPublisher(endpoint, replay_endpoint=ANYWHERE, **{"block_size": 2, **settings})
    publisher.start()
    try:
        yield publisher
    finally:
        await publisher.close()


@pytest.fixture
async def reader() -> AsyncIterator[Reader]:
    async with Reader() as reader:
        yield reader


def replay_of(publisher: KvEventPublisher) -> str:
    assert publisher.replay_endpoint is not None
    return publisher.replay_endpoint


def run(pool: BlockPool, tokens: list[int], namespace: Namespace = PLAIN) -> None:
    """A request comes, is computed and goes."""
    packed = pack_tokens(tokens)
    table = pool.open(namespace, packed)
    assert pool.grow(table, len(tokens))
    pool.store(table, packed, len(tokens))
    pool.release(table)


def step(publisher: KvEventPublisher, number: int, tokens: int = 2) -> None:
    """A step that stores one block with the key `number`, of tokens that take three bytes each."""
    publisher.stored(None, number, pack_tokens([1000] * tokens), PLAIN)
    publisher.flush()


async def until_heard(socket: zmq.asyncio.Socket, publish: Callable[[int], None]) -> int:
    """Publishes until something has reached the socket, for a subscription takes its time. Returns how often."""
    for number in range(int(100 * PATIENCE_S)):
        publish(number)
        if await socket.poll(10):
            return number + 1
    raise AssertionError("nothing was heard in time")


def text(value: str) -> bytes:
    """A short string in MessagePack."""
    return bytes([0xA0 + len(value)]) + value.encode()


GOLDEN: list[tuple[KvEvent, bytes]] = [
    (
        Stored((BIG, 7), None, (1, 127, 256, 2**32 - 1), 2, None, "GPU", None),
        b"\x88" + text("type") + text("BlockStored")
        + text("block_hashes") + b"\x92\xcf\xff\xff\xff\xff\xff\xff\xff\xff\x07"
        + text("parent_block_hash") + b"\xc0"
        + text("token_ids") + b"\x94\x01\x7f\xcd\x01\x00\xce\xff\xff\xff\xff"
        + text("block_size") + b"\x02"
        + text("lora_id") + b"\xc0" + text("medium") + text("GPU") + text("lora_name") + b"\xc0",
    ),
    (
        Stored((3,), 2**63, (5, 6), 2, None, "GPU", "lora", (("lora", "salt"),)),
        b"\x89" + text("type") + text("BlockStored")
        + text("block_hashes") + b"\x91\x03"
        + text("parent_block_hash") + b"\xcf\x80\x00\x00\x00\x00\x00\x00\x00"
        + text("token_ids") + b"\x92\x05\x06" + text("block_size") + b"\x02"
        + text("lora_id") + b"\xc0" + text("medium") + text("GPU") + text("lora_name") + text("lora")
        + text("extra_keys") + b"\x91\x92" + text("lora") + text("salt"),
    ),
    (
        Removed((1, BIG), "GPU"),
        b"\x83" + text("type") + text("BlockRemoved")
        + text("block_hashes") + b"\x92\x01\xcf\xff\xff\xff\xff\xff\xff\xff\xff"
        + text("medium") + text("GPU"),
    ),
    (Cleared(), b"\x81" + text("type") + b"\xb0AllBlocksCleared"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "golden"), GOLDEN)
def test_each_event_has_the_bytes_that_vllm_gives_it(event: KvEvent, golden: bytes) -> None:
    batch = b"\x93\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00" + b"\x91" + golden + b"\x00"
    assert encode_batch(KvEventBatch(1.5, [event])) == batch


def test_runs_of_blocks_become_one_event_and_order_is_kept() -> None:
    log = KvEventLog(block_size=1)
    for parent, key in ((None, 1), (1, 2), (1, 3), (None, 4)):
        log.stored(parent, key, pack_tokens([10 * key]), PLAIN)
    log.removed(4)
    log.removed(3)
    log.stored(1, 3, pack_tokens([30]), PLAIN)
    assert log.drain() == [
        Stored((1, 2), None, (10, 20), 1, None, "GPU", None),
        Stored((3,), 1, (30,), 1, None, "GPU", None),
        Stored((4,), None, (40,), 1, None, "GPU", None),
        Removed((4, 3), "GPU"),
        Stored((3,), 1, (30,), 1, None, "GPU", None),
    ]
    assert log.drain() == []


def test_what_a_step_did_before_everything_was_cleared_is_not_told() -> None:
    log = KvEventLog(block_size=1)
    log.stored(None, 1, pack_tokens([1]), PLAIN)
    log.removed(1)
    log.stored(None, 2, pack_tokens([2]), PLAIN)
    log.cleared()
    log.stored(None, 3, pack_tokens([3]), PLAIN)
    assert log.drain() == [Cleared(), Stored((3,), None, (3,), 1, None, "GPU", None)]


@pytest.mark.parametrize(
    ("namespace", "from_start", "later"),
    [
        (Namespace("m"), None, None),
        (Namespace("m", cache_salt="s"), (("s",), None), None),
        (Namespace("m", adapter="a"), (("a",), ("a",)), (("a",),)),
        (Namespace("m", adapter="a", cache_salt="s"), (("a", "s"), ("a",)), (("a",),)),
    ],
)
def test_adapter_and_salt_are_told_with_the_blocks_they_belong_to(
    namespace: Namespace, from_start: object, later: object
) -> None:
    log = KvEventLog(block_size=1)
    for parent, key in ((None, 1), (1, 2), (1, 3)):
        log.stored(parent, key, pack_tokens([key]), namespace)
    first, second = log.drain()
    assert isinstance(first, Stored)
    assert isinstance(second, Stored)
    assert (first.extra_keys, second.extra_keys) == (from_start, later)
    assert first.lora_name == second.lora_name == (namespace.adapter or None)


async def test_subscribers_get_topic_number_and_payload(reader: Reader) -> None:
    async with publishing(topic="kv@r1@m", clock=lambda: 1.5) as publisher:
        socket = reader.subscribe(publisher.endpoint, "kv@")
        published = await until_heard(socket, partial(step, publisher))
        topic, seq, payload = await receive(socket)
        assert topic == b"kv@r1@m"
        heard = int.from_bytes(seq, "big")
        assert heard < published
        block = Stored((heard,), None, (1000, 1000), 2, None, "GPU", None)
        assert payload == encode_batch(KvEventBatch(1.5, [block]))


async def test_a_publisher_may_connect_to_the_one_subscriber_that_it_is_told(reader: Reader) -> None:
    socket = reader.socket(zmq.SUB)
    socket.subscribe("")
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    async with publishing(f"tcp://127.0.0.1:{port}") as publisher:
        await until_heard(socket, partial(step, publisher))
        _, number, payload = await receive(socket)
        assert (int.from_bytes(number, "big"), payload) in await reader.replay(replay_of(publisher), 0)


WORK = st.lists(
    st.one_of(
        st.tuples(st.lists(st.integers(0, 1), min_size=2, max_size=9), st.sampled_from(["", "a"]), st.booleans()),
        st.sampled_from(["release", "clear", "flush"]),
    ),
    max_size=40,
)


def work(pool: BlockPool, actions: list[Any], flush: Callable[[], None]) -> None:
    held: list[BlockTable] = []
    for action in actions:
        if action == "flush":
            flush()
        elif action == "release":
            if held:
                pool.release(held.pop(0))
        elif action == "clear":
            while held:
                pool.release(held.pop())
            pool.clear()
        else:
            tokens, name, keep = action
            table = pool.open(Namespace("m", adapter=name, cache_salt=name), pack_tokens(tokens))
            if pool.grow(table, len(tokens)):
                pool.store(table, pack_tokens(tokens), len(tokens))
            if keep:
                held.append(table)
            else:
                pool.release(table)
    flush()


@settings(max_examples=40, deadline=None)
@given(WORK)
def test_a_replay_from_the_start_tells_exactly_what_is_resident(actions: list[Any]) -> None:
    async def follow() -> None:
        async with publishing() as publisher:
            pool = BlockPool(9, 2, witness=publisher)
            work(pool, actions, publisher.flush)
            async with Reader() as reader:
                batches = await reader.replay(replay_of(publisher), 0)
            assert residency(batches) == Replay(pool.snapshot()).parents

    asyncio.run(follow())


async def test_a_subscriber_that_was_too_slow_sees_the_gap_and_learns_the_rest_by_replay() -> None:
    tokens = 2048
    async with publishing(block_size=tokens) as publisher, Reader(small=True) as slow:
        pool = BlockPool(64, tokens, witness=publisher)

        def publish(prompt: int) -> None:
            run(pool, [1000 + prompt] * (tokens + 1))
            publisher.flush()

        socket = slow.subscribe(publisher.endpoint)
        published = await until_heard(socket, publish)
        for _ in range(2500):  # some fifteen megabytes, none of which is read meanwhile
            publish(published)
            published += 1

        known, heard, gaps = Residency(), 0, 0
        while heard < published:
            if not await socket.poll(100):
                publish(published)  # without more news it cannot see what it missed at the end
                published += 1
                continue
            _, number, payload = await receive(socket)
            seq = int.from_bytes(number, "big")
            gaps += seq > heard
            missed = await slow.replay(replay_of(publisher), heard) if seq > heard else [(seq, payload)]
            for seq, payload in missed:
                if seq >= heard:
                    assert seq == heard
                    known.apply(payload)
                    heard += 1
        assert gaps, "it should have been too slow"
        assert known.parents == Replay(pool.snapshot()).parents


async def test_a_replay_starts_where_it_is_asked_to(reader: Reader) -> None:
    async with publishing(keep=5) as publisher:
        where = replay_of(publisher)
        assert await reader.replay(where, 0) == []
        for number in range(8):
            step(publisher, number)
            publisher.flush()  # nothing new: no batch
        assert [seq for seq, _ in await reader.replay(where, 6)] == [6, 7]
        assert [seq for seq, _ in await reader.replay(where, 0)] == [3, 4, 5, 6, 7], "as far as they are kept"
        assert await reader.replay(where, 8) == []
        assert await reader.replay(where, BIG) == []


def test_what_is_kept_is_bounded_in_batches_and_in_bytes() -> None:
    def kept(keep: int, keep_bytes: int) -> list[int]:
        history = History(b"", keep, keep_bytes)
        for size in (4, 4, 9, 3, 3):
            history.append(bytes(size))
        return [int.from_bytes(seq, "big") for _, seq, _ in history.since(0)]

    assert kept(3, 100) == [2, 3, 4]
    assert kept(100, 15) == [2, 3, 4]
    assert kept(100, 14) == [3, 4]
    assert kept(100, 1) == [4], "the last one is kept, however large it is"


async def test_a_request_that_is_none_is_ignored(reader: Reader) -> None:
    async with publishing() as publisher:
        step(publisher, 1)
        socket = reader.socket(zmq.DEALER)
        socket.connect(replay_of(publisher))
        for frames in ([b""], [b"", b"1"], [b"x", bytes(8)], [bytes(8)], [b"", bytes(8), b""], [b"", bytes(9)]):
            await socket.send_multipart(frames)
        await socket.send_multipart([b"", bytes(8)])
        assert [seq for seq, _ in await rest_of_answer(socket)] == [0]


async def test_a_replay_that_is_not_read_holds_up_nobody(reader: Reader) -> None:
    async with publishing() as publisher, Reader(small=True) as lazy:
        for number in range(1500):
            step(publisher, number, tokens=4096)
        waiting = await lazy.ask(replay_of(publisher), 0)
        assert await waiting.poll(PATIENCE_S * 1000)
        assert len(await reader.replay(replay_of(publisher), 0)) == 1500
        step(publisher, 1500)
        assert [seq for seq, _ in await rest_of_answer(waiting)] == list(range(1500)), "it comes, when it is read"


async def test_readers_may_leave_in_the_middle_of_a_replay(reader: Reader) -> None:
    async with publishing() as publisher:
        for number in range(1500):
            step(publisher, number, tokens=4096)
        for _ in range(3):
            async with Reader(small=True) as hasty:
                assert await (await hasty.ask(replay_of(publisher), 0)).poll(PATIENCE_S * 1000)
        assert len(await reader.replay(replay_of(publisher), 0)) == 1500


def test_it_works_in_the_event_loop_that_replicas_run_in() -> None:
    async def follow() -> None:
        async with publishing() as publisher, Reader() as reader:
            pool = BlockPool(9, 2, witness=publisher)
            for prompt in range(30):
                run(pool, [prompt, prompt, 1, 2, 3])
                publisher.flush()
            assert residency(await reader.replay(replay_of(publisher), 0)) == Replay(pool.snapshot()).parents

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(follow())


async def test_addresses_that_cannot_be_used_name_the_flag_and_leave_nothing_behind() -> None:
    async with publishing() as publisher:
        taken = publisher.endpoint.replace("127.0.0.1", "*")
        with pytest.raises(KvEventsError, match=r"--kv-events-zmq tcp://\*:\d+: it is in use; choose a free port"):
            KvEventPublisher(taken, block_size=2).start()
        second = KvEventPublisher(ANYWHERE, block_size=2, replay_endpoint=publisher.endpoint)
        with pytest.raises(KvEventsError, match=r"--kv-events-replay tcp://127.0.0.1:\d+: it is in use"):
            second.start()
        await second.close()
    with pytest.raises(KvEventsError, match="no network interface has this address"):
        KvEventPublisher(ANYWHERE, block_size=2, replay_endpoint="tcp://192.0.2.1:5558").start()
    again = KvEventPublisher(taken, block_size=2)
    again.start()
    await again.close()


@pytest.mark.parametrize(
    "endpoint", ["", "5557", "*:5557", "http://host:1", "tcp://host", "tcp://*:x", "tcp://*:65536", "inproc://kv"]
)
def test_what_is_no_endpoint_is_refused_at_once(endpoint: str) -> None:
    with pytest.raises(KvEventsError, match=r"--kv-events-zmq .* such as tcp://"):
        KvEventPublisher(endpoint, block_size=16)


async def test_it_may_be_closed_twice_and_says_nothing_afterwards() -> None:
    publisher = KvEventPublisher(ANYWHERE, block_size=2, replay_endpoint=ANYWHERE)
    await publisher.close()
    publisher.start()
    await publisher.close()
    step(publisher, 1)
    await publisher.close()


def test_zmq_is_loaded_only_to_publish() -> None:
    program = "import sys, replica.kv_events; sys.exit(sorted({'zmq', 'numpy', 'torch'} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
