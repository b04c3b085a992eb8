"""Routers that share a Redis see each other's bookings and routing, whatever becomes of a router or of Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import msgspec
import pytest

from radix.redis_link import open_link
from router.gossip import HEAR, MAX_KEYS, MAX_MESSAGE_BYTES, MAX_WAITING_KEYS, TELL, Gossip, Message
from scoring.ledger import ReplicaLoad
from scoring.shared_loads import OpenTotals, SharedLoads, Update
from tests.redis_server import RedisCluster3, RedisServer, Sentinels, admin

WAIT_S = 20.0  # for what must happen; nothing waits this long when the router is right
NEVER_S = 3600.0

Sums = tuple[int, int, int, int]


@dataclass(frozen=True)
class Pace:
    refresh_s: float
    lease_s: float


QUICK = Pace(0.05, 0.4)
NO_HELP = Pace(NEVER_S, NEVER_S)  # nothing is repaired by a refresh or ended by a lease


class Router:
    """One router's share of the gossip: a load for each replica, and what it was told of others' routing."""

    def __init__(self, url: str, replicas: Sequence[str], epoch: int, pace: Pace) -> None:
        self.link = open_link(url, timeout_s=1.0)
        self.shared = SharedLoads()
        self.loads = {name: ReplicaLoad(name) for name in replicas}
        self.told: list[tuple[str, int, list[int]]] = []
        for load in self.loads.values():
            self.shared.add(load, epoch)
        clock = asyncio.get_running_loop().time
        self.gossip = Gossip(
            self.link, self.shared, self._on_routed, clock, refresh_s=pace.refresh_s, lease_s=pace.lease_s
        )

    def sums(self, name: str = "r") -> Sums:
        load = self.loads[name]
        return load.queued_tokens, load.context_tokens, load.waiting, load.decoding

    def _on_routed(self, replica: str, exact: int, keys: Sequence[int]) -> None:
        self.told.append((replica, exact, list(keys)))


@asynccontextmanager
async def router(
    url: str, *replicas: str, epoch: int = 0, pace: Pace = NO_HELP, waiting: bool = True
) -> AsyncIterator[Router]:
    """A router, as soon as it is on the channel unless not `waiting` for that."""
    it = Router(url, replicas or ("r",), epoch, pace)
    it.gossip.start()
    try:
        if waiting:
            await until(lambda: it.gossip.connected and it.gossip.speaking)
        yield it
    finally:
        await it.gossip.close()
        await it.link.close()


async def until(condition: Callable[[], bool]) -> None:
    """Polls a condition until it holds."""
    deadline = asyncio.get_running_loop().time() + WAIT_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
def url(server: RedisServer) -> str:
    """A namespace of its own."""
    return f"{server.url}?namespace={uuid4().hex}"


async def test_every_step_of_a_booking_reaches_the_other_routers(url: str) -> None:
    async with router(url) as one, router(url) as two, router(url) as three:
        await until(lambda: one.gossip.peers == two.gossip.peers == three.gossip.peers == 2)
        booking = one.loads["r"].book(100, 60)
        two.loads["r"].book(10, 10)
        await until(lambda: one.sums() == two.sums() == three.sums() == (70, 110, 2, 0))
        booking.first_byte()
        await until(lambda: one.sums() == two.sums() == three.sums() == (10, 110, 1, 1))
        booking.release()
        await until(lambda: one.sums() == two.sums() == three.sums() == (10, 10, 1, 0))


async def test_a_burst_of_bookings_is_told_in_few_messages(url: str) -> None:
    names = [f"r{index}" for index in range(8)]
    async with router(url, *names) as one, router(url, *names) as two:
        await until(lambda: two.gossip.peers == 1)
        before = one.gossip.sent
        for _ in range(100):
            for name in names:
                one.loads[name].book(2, 1)
        await until(lambda: all(two.sums(name) == (100, 200, 100, 0) for name in names))
        assert one.gossip.sent <= before + 2


async def test_a_newcomer_is_told_at_once_what_is_booked_and_where(url: str) -> None:
    async with router(url) as one:
        one.loads["r"].book(5, 5)
        async with router(url) as two:
            await until(lambda: two.sums() == (5, 5, 1, 0))
            assert two.gossip.peers == 1


async def test_a_router_that_says_goodbye_takes_its_bookings_along(url: str) -> None:
    async with router(url) as one:
        async with router(url) as two:
            two.loads["r"].book(5, 5)
            await until(lambda: one.sums() == (5, 5, 1, 0))
        await until(lambda: one.sums() == (0, 0, 0, 0))
        assert one.gossip.peers == 0


async def test_what_was_booked_alone_is_told_to_whoever_is_heard_first_even_if_it_does_not_ask(
    server: RedisServer, url: str
) -> None:
    async with router(url) as one:
        with admin(server) as client, client.pubsub(ignore_subscribe_messages=True) as other:
            other.subscribe(one.gossip._channel)
            one.loads["r"].book(5, 5)
            await until(lambda: not one.gossip._due.is_set())  # it has found nobody to tell
            client.publish(one.gossip._channel, msgspec.msgpack.encode(Message(Update("x", 1))))
            heard: list[OpenTotals] = []

            def told() -> bool:
                said = other.get_message()
                if said is not None:
                    heard.extend(msgspec.msgpack.decode(said["data"], type=Message).update.totals)
                return heard == [OpenTotals("r", 0, 5, 5, 1, 0)]

            await until(told)


async def test_a_router_ends_at_whatever_moment_it_is_closed(url: str) -> None:
    for moment in range(60):
        async with router(url, pace=QUICK) as one:
            one.loads["r"].book(1, 1)
            for _ in range(moment % 20):  # a command may be on its way, just written, or just answered
                await asyncio.sleep(0)
            async with asyncio.timeout(WAIT_S):
                await one.gossip.close()


KILLED = """
import asyncio, sys
from radix.redis_link import open_link
from router.gossip import Gossip
from scoring.ledger import ReplicaLoad
from scoring.shared_loads import SharedLoads

async def main():
    shared, load = SharedLoads(), ReplicaLoad("r")
    shared.add(load)
    gossip = Gossip(open_link(sys.argv[1]), shared, print, asyncio.get_running_loop().time, refresh_s=0.05)
    gossip.start()
    load.book(40, 30)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_routers_bookings_end_with_its_lease_and_not_before(url: str) -> None:
    async with router(url, pace=QUICK) as one:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, url)
        try:
            await until(lambda: one.sums() == (30, 40, 1, 0))
            seen = one.gossip.received
            await until(lambda: one.gossip.received > seen + 10)  # its signs of life
            assert one.sums() == (30, 40, 1, 0)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
        await until(lambda: one.gossip.peers == 0)
        assert one.sums() == (0, 0, 0, 0)


async def test_numbers_for_one_incarnation_do_not_count_on_another(url: str) -> None:
    async with router(url, epoch=1) as one, router(url, epoch=2) as two:
        await until(lambda: one.gossip.peers == 1)
        one.loads["r"].book(5, 5)
        one.gossip.routed("r", 16, [1, 2])
        one.shared.add(later := ReplicaLoad("other"), 3)
        later.book(1, 1)
        two.shared.add(seen := ReplicaLoad("other"), 3)
        await until(lambda: seen.waiting == 1)
        assert two.sums() == (0, 0, 0, 0)
        two.shared.add(joined := ReplicaLoad("r"), 1)
        await until(lambda: joined.waiting == 1)
        assert two.told == []


async def test_routed_prompts_reach_the_others_in_order_and_not_their_sender(url: str) -> None:
    keys = [2**64 - 1, 0, 17]
    async with router(url) as one, router(url) as two:
        await until(lambda: one.gossip.peers == 1)  # alone, it forgets what it routed
        one.gossip.routed("r", 16, keys)
        one.gossip.routed("r", 0, keys[:1])
        one.gossip.routed("unknown", 0, keys)
        one.gossip.routed("r", 32, keys[1:])
        await until(lambda: len(two.told) == 3)
        assert two.told == [("r", 16, keys), ("r", 0, keys[:1]), ("r", 32, keys[1:])]
        assert one.told == []
        assert one.gossip.dropped == 0


async def test_large_news_are_split_and_of_a_very_long_prompt_the_start_is_told(server: RedisServer, url: str) -> None:
    async with router(url) as one, router(url) as two:
        await until(lambda: one.gossip.peers == 1)
        with admin(server) as client, client.pubsub(ignore_subscribe_messages=True) as watcher:
            watcher.psubscribe("*:loads")
            for start in range(6):
                one.gossip.routed("r", 16, range(start, start + MAX_KEYS // 2))
            one.gossip.routed("r", 16, range(MAX_KEYS + 5))
            await until(lambda: len(two.told) == 7)
            assert [len(keys) for _, _, keys in two.told] == [MAX_KEYS // 2] * 6 + [MAX_KEYS]
            assert two.told[-1][2] == list(range(MAX_KEYS))
            sizes: list[int] = []
            while len(sizes) < 4:
                said = watcher.get_message(timeout=WAIT_S)
                if said is not None and len(said["data"]) > MAX_MESSAGE_BYTES // 4:
                    sizes.append(len(said["data"]))
            assert max(sizes) < MAX_MESSAGE_BYTES * 2


async def test_a_router_alone_hears_nothing_of_itself(url: str) -> None:
    async with router(url, pace=QUICK) as one:
        booking = one.loads["r"].book(5, 5)
        sent = one.gossip.sent
        await until(lambda: one.gossip.sent > sent + 5)
        assert one.sums() == (5, 5, 1, 0)
        assert (one.gossip.peers, one.gossip.received, one.told) == (0, 0, [])
        booking.release()


async def test_a_message_that_cannot_be_read_is_counted_and_harms_nobody(server: RedisServer, url: str) -> None:
    negative = Message(Update("x", 1, (OpenTotals("r", 0, -1, 0, 0, 0),)))
    good = Message(Update("x", 1, (OpenTotals("r", 0, 1, 1, 1, 0),)))
    async with router(url) as one:
        channel = f"{{radixgate:{one.link.namespace}}}:loads"
        half_a_key = [["x", 1, [], 0], [["r", 0, 16, b"1234"]], False, False]
        with admin(server) as client:
            for said in (b"", b"\xff" * 9, b"\x91" * 5000, *map(msgspec.msgpack.encode, (half_a_key, negative, good))):
                client.publish(channel, said)
        await until(lambda: one.sums() == (1, 1, 1, 0))
        assert one.gossip.refused == 5
        assert one.gossip.connected


async def test_a_cut_connection_is_made_again_and_what_was_missed_is_told(server: RedisServer, url: str) -> None:
    async with router(url) as one, router(url) as two:
        await until(lambda: two.gossip.peers == 1)
        with admin(server) as client:
            client.client_kill_filter(_type="pubsub")
        one.loads["r"].book(5, 5)
        await until(lambda: two.sums() == (5, 5, 1, 0))


async def test_while_redis_stands_still_each_sees_its_own_bookings_and_afterwards_all() -> None:
    with RedisServer() as server:
        async with router(server.url, pace=QUICK) as one, router(server.url, pace=QUICK) as two:
            one.loads["r"].book(5, 5)
            await until(lambda: two.sums() == (5, 5, 1, 0))
            server.pause()
            two.loads["r"].book(1, 1)
            await until(lambda: one.gossip.peers == two.gossip.peers == 0)
            assert one.sums() == (5, 5, 1, 0)
            assert two.sums() == (1, 1, 1, 0)
            await until(lambda: not (one.gossip.connected or one.gossip.speaking))
            one.loads["r"].book(3, 3)
            server.resume()
            await until(lambda: one.sums() == two.sums() == (9, 9, 3, 0))


async def test_a_redis_that_is_killed_and_comes_back_empty_is_used_again() -> None:
    with RedisServer() as server:
        async with router(server.url, pace=QUICK) as one, router(server.url, pace=QUICK) as two:
            booking = one.loads["r"].book(5, 5)
            await until(lambda: two.sums() == (5, 5, 1, 0))
            server.kill()
            booking.release()
            two.loads["r"].book(2, 2)
            await until(lambda: one.gossip.peers == two.gossip.peers == 0)
            assert one.sums() == (0, 0, 0, 0)
            await until(lambda: not (one.gossip.speaking or two.gossip.speaking))
            server.start()
            await until(lambda: one.sums() == two.sums() == (2, 2, 1, 0))


async def test_routed_prompts_wait_for_redis(server: RedisServer, url: str, caplog: pytest.LogCaptureFixture) -> None:
    with admin(server) as client:
        client.acl_setuser("late", enabled=False, passwords=["+secret"], channels=["*"], categories=["+@all"])
        async with router(url) as two:
            async with router(url.replace("//", "//late:secret@"), waiting=False, pace=QUICK) as one:
                one.gossip.routed("r", 16, [7])
                one.loads["r"].book(5, 5)
                await until(lambda: TELL in caplog.text)
                client.acl_setuser("late", enabled=True)
                await until(lambda: two.told == [("r", 16, [7])])
                await until(lambda: two.sums() == (5, 5, 1, 0))


async def test_without_redis_nothing_fails_and_what_waits_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer() as server:
        url = server.url
    long = list(range(MAX_WAITING_KEYS // 4))
    async with router(url, waiting=False, pace=QUICK) as one:
        one.loads["r"].book(5, 5).release()
        for _ in range(6):
            one.gossip.routed("r", 16, long)
        assert one.gossip.dropped == 2
        await until(lambda: HEAR in caplog.text and TELL in caplog.text)
        assert one.sums() == (0, 0, 0, 0)
        assert one.gossip.dropped == 2


async def test_routers_of_a_cluster_hear_each_other_also_after_it_was_away() -> None:
    with RedisCluster3() as cluster:
        async with router(cluster.url, pace=QUICK) as one, router(cluster.url, pace=QUICK) as two:
            booking = one.loads["r"].book(5, 5)
            await until(lambda: two.sums() == (5, 5, 1, 0))
            home = cluster.node_of("{radixgate:default}:loads")
            home.kill()
            await until(lambda: one.gossip.peers == two.gossip.peers == 0)
            booking.release()
            two.loads["r"].book(2, 2)
            home.start()
            await until(lambda: one.sums() == two.sums() == (2, 2, 1, 0))


async def test_routers_behind_sentinels_hear_each_other_also_after_a_failover() -> None:
    with Sentinels() as sentinels:
        async with router(sentinels.url, pace=QUICK) as one, router(sentinels.url, pace=QUICK) as two:
            booking = one.loads["r"].book(5, 5)
            await until(lambda: two.sums() == (5, 5, 1, 0))
            sentinels.fail_over()
            booking.release()
            two.loads["r"].book(2, 2)
            await until(lambda: one.sums() == two.sums() == (2, 2, 1, 0))
