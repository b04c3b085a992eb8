"""Whatever happens on the way, Redis ends up saying exactly what the replica holds."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as Disconnected

from radix.blocks import pack_tokens
from radix.events import EventBatch, Registration, Snapshot
from radix.feed import Outcome
from radix.publisher import Publisher
from radix.redis_link import UNAVAILABLE, RedisLink, open_link
from radix.redis_tree import Applied, RedisTree
from radix.tasks import end_tasks
from replica.blocks import BlockPool, Namespace
from replica.journal import Journal
from tests.redis_server import RedisServer
from tests.replica.replay import Replay

WAIT_S = 20.0  # for what must happen; nothing waits this long when all is right
NAMESPACES = count()
LEASE_S = 0.3  # a wiped Redis is noticed at the next renewal, after a third of it
PAUSES_S = (0.001, 0.05)

Answer = TypeVar("Answer")


class Cache:
    """What one replica holds: a block pool and its journal, without the engine between them."""

    def __init__(self, name: str = "r", epoch: int = 1, *, keep: int = 256, lease_s: float = LEASE_S) -> None:
        self.name = name
        self.epoch = epoch
        self.lease_s = lease_s
        self.pool = BlockPool(24, 1)
        self.journal = Journal(name, epoch, keep)
        self.snapshots = 0

    def serve(self, *prompt: int) -> None:
        """A prompt leaves its blocks behind, and drives others out."""
        packed = pack_tokens(prompt)
        table = self.pool.open(Namespace("m"), packed)
        assert self.pool.grow(table, len(prompt))
        self.pool.store(table, packed, len(prompt))
        self.pool.release(table)
        self.journal.append(self.pool.drain())

    def serve_some(self, steps: int, seed: int = 0, *, batches: bool = False) -> None:
        """Random prompts that share beginnings; with `batches`, each step's events become a batch of their own."""
        chance = random.Random(seed)
        for _ in range(steps):
            self.serve(*chance.choices(range(3), k=chance.randint(1, 12)))
            if batches:
                self.close()

    def close(self) -> int:
        """The number of the next batch, with everything until now in the batches before it."""
        self.journal.batch(self.journal.next_seq)
        return self.journal.next_seq

    def keys(self) -> set[int]:
        return set(Replay(self.pool.snapshot()).parents)

    def account(self) -> Registration:
        return Registration(self.name, "http://r", self.epoch, ("m",), 1, 24, lease_s=self.lease_s)

    async def snapshot(self) -> Snapshot:
        self.snapshots += 1
        return self.journal.snapshot(self.pool.snapshot())


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    """For tests that can share one: it is neither stopped nor configured."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@asynccontextmanager
async def link_to(url: str, timeout_s: float = 2.0) -> AsyncIterator[RedisLink]:
    link = open_link(url, timeout_s=timeout_s)
    try:
        yield link
    finally:
        await link.close()


@asynccontextmanager
async def tree_of(
    server: RedisServer, namespace: str | None = None, timeout_s: float = 2.0
) -> AsyncIterator[RedisTree]:
    async with link_to(f"{server.url}?namespace={namespace or f'n{next(NAMESPACES)}'}", timeout_s) as link:
        yield RedisTree(link)


@asynccontextmanager
async def another(tree: RedisTree) -> AsyncIterator[RedisTree]:
    """The same tree, through connections of its own."""
    async with link_to(tree.link.shown) as link:
        yield RedisTree(link)


@asynccontextmanager
async def publishing(
    tree: RedisTree, cache: Cache, snapshot: Callable[[], Awaitable[Snapshot]] | None = None
) -> AsyncIterator[Publisher]:
    publisher = Publisher(tree, cache.journal, cache.account, snapshot or cache.snapshot, pauses_s=PAUSES_S)
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
        assert not task.done(), "it gave up"
    finally:
        await end_tasks(task)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Polls until it holds; a Redis that is away is not there yet."""
    # Not asyncio.timeout: its cancellation can be swallowed (radix/tasks.py).
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            if await condition():
                return
        except UNAVAILABLE:
            pass
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.002)


async def in_step(tree: RedisTree, cache: Cache) -> None:
    """Redis comes to say what the cache holds."""
    seq = await told_all(tree, cache)
    said: tuple[int, set[int]] | None = None

    async def answered() -> bool:
        nonlocal said
        said = await tree.residency(cache.name)
        return True

    await until(answered)
    assert said == (seq, cache.keys())


async def told_all(tree: RedisTree, cache: Cache) -> int:
    """Waits until Redis has every batch; their number."""
    seq = cache.close()

    async def told() -> bool:
        *_, members = await tree.open()
        return any(
            (member.said.name, member.said.epoch, member.next_seq) == (cache.name, cache.epoch, seq)
            for member in members
        )

    await until(told)
    return seq


# In peace


async def test_all_that_happens_to_the_blocks_of_many_replicas_is_told(shared: RedisServer) -> None:
    caches = [Cache(f"r{number}") for number in range(4)]
    async with tree_of(shared) as tree, AsyncExitStack() as stack:
        for cache in caches:
            await stack.enter_async_context(publishing(tree, cache))
        for step in range(100):
            for number, cache in enumerate(caches):
                cache.serve_some(1, seed=step + 1000 * number)
            await asyncio.sleep(0)
        for cache in caches:
            await in_step(tree, cache)
            assert cache.snapshots == 1, "only the beginning needs a block list"


async def test_what_was_there_before_is_handed_in(shared: RedisServer) -> None:
    cache = Cache(keep=2)
    cache.serve_some(20, batches=True)
    async with tree_of(shared) as tree, publishing(tree, cache) as publisher:
        await in_step(tree, cache)
        assert publisher.connected


async def test_a_goodbye_ends_it_at_once(shared: RedisServer) -> None:
    cache = Cache()
    cache.serve_some(5)
    async with tree_of(shared) as tree:
        async with publishing(tree, cache) as publisher:
            await in_step(tree, cache)
        assert not publisher.connected
        await publisher.goodbye()
        assert await tree.residency("r") is None


class Watched(RedisTree):
    """Counts the registrations."""

    registrations = 0

    async def register(self, said: Registration) -> int:
        due = await super().register(said)
        self.registrations += 1
        return due

    async def registered(self, times: int) -> None:
        async def enough() -> bool:
            return self.registrations >= times

        await until(enough)


async def test_the_lease_is_renewed_while_nothing_happens_and_while_the_block_list_takes_long(
    shared: RedisServer,
) -> None:
    cache = Cache()
    cache.serve_some(5)
    at_last = asyncio.Event()

    async def slowly() -> Snapshot:
        await at_last.wait()
        return await cache.snapshot()

    async with tree_of(shared) as plain:
        tree = Watched(plain.link)
        async with publishing(tree, cache, slowly):
            await tree.registered(4)
            assert cache.snapshots == 0
            at_last.set()
            await in_step(tree, cache)
            await tree.registered(tree.registrations + 3)
            assert cache.snapshots == 1


async def test_a_block_list_that_cannot_be_had_is_asked_for_again(
    shared: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache()
    cache.serve_some(5)
    failures = iter([OSError("no route"), ValueError("nonsense"), OSError("no route")])

    async def rarely() -> Snapshot:
        for failure in failures:
            raise failure
        return await cache.snapshot()

    async with tree_of(shared) as tree, publishing(tree, cache, rarely):
        await in_step(tree, cache)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"replica r at {tree.link.shown}: cannot report: its block list could not be had; no route; trying again"
    ]


# Redis away, wiped, or with an older memory


async def test_a_redis_that_comes_back_empty_is_told_everything(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache()
    cache.serve_some(10)
    async with tree_of(server, "n") as tree, publishing(tree, cache) as publisher:
        await in_step(tree, cache)
        server.kill()
        cache.serve_some(10, seed=1, batches=True)

        async def noticed() -> bool:
            return not publisher.connected

        await until(noticed)
        server.start()
        cache.serve_some(10, seed=2)
        await in_step(tree, cache)
        assert cache.snapshots == 2
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1, "one outage is said once"
    assert "cannot report" in said[0].message
    assert server.address in said[0].message


async def test_a_redis_that_comes_back_with_its_data_is_told_what_it_missed_and_no_more() -> None:
    cache = Cache()
    cache.serve_some(10)
    with RedisServer(persistent=True) as server:
        async with tree_of(server, "n") as tree, publishing(tree, cache):
            await in_step(tree, cache)
            server.kill()
            cache.serve_some(10, seed=1, batches=True)
            server.start()
            await in_step(tree, cache)
            assert cache.snapshots == 1


async def test_a_redis_that_comes_back_with_an_older_memory_is_told_again_what_it_forgot(server: RedisServer) -> None:
    cache = Cache()
    cache.serve_some(10)
    async with tree_of(server, "n") as tree, publishing(tree, cache):
        await in_step(tree, cache)
        await tree.link.client.save()
        cache.serve_some(10, seed=1, batches=True)
        await in_step(tree, cache)
        server.kill()
        server.start()
        await in_step(tree, cache)
        assert cache.snapshots == 1


async def test_a_redis_that_stands_still_under_load_catches_up(server: RedisServer) -> None:
    cache = Cache()
    async with (
        tree_of(server, "n") as tree,
        tree_of(server, "n", timeout_s=0.2) as impatient,
        publishing(impatient, cache) as publisher,
    ):
        await in_step(tree, cache)
        server.pause()

        async def noticed() -> bool:
            cache.serve_some(1, seed=random.randrange(10**9), batches=True)
            return not publisher.connected

        await until(noticed)
        server.resume()
        await in_step(tree, cache)


@pytest.mark.parametrize("busy", [True, False])
async def test_a_wipe_is_noticed_whether_there_is_something_to_tell_or_not(server: RedisServer, busy: bool) -> None:
    cache = Cache(lease_s=60 if busy else LEASE_S)
    cache.serve_some(10)
    async with tree_of(server, "n") as tree, publishing(tree, cache):
        await in_step(tree, cache)
        await tree.link.client.flushall()
        if busy:
            cache.serve_some(1, seed=1)
        await in_step(tree, cache)
        assert cache.snapshots == 2


async def test_a_batch_that_was_acknowledged_and_lost_is_noticed_with_the_next_one(shared: RedisServer) -> None:
    """As when a master dies before its replica had it."""
    cache = Cache(lease_s=60)
    cache.serve_some(10)
    async with tree_of(shared) as tree:
        faulty = Faulty(tree.link, ["", "", LOST])
        async with publishing(faulty, cache):
            await in_step(tree, cache)
            cache.serve(1, 2, 3)
            cache.close()
            await until(faulty.calm)
            cache.serve(3, 2, 1)
            await in_step(tree, cache)
            assert cache.snapshots == 1


async def test_a_wipe_while_the_block_list_is_on_its_way_is_noticed_at_once(server: RedisServer) -> None:
    cache = Cache(lease_s=60)
    cache.serve_some(10)
    async with tree_of(server) as tree:

        async def wiping() -> Snapshot:
            if cache.snapshots == 0:
                await tree.link.client.flushall()
            return await cache.snapshot()

        async with publishing(tree, cache, wiping):
            await in_step(tree, cache)
            assert cache.snapshots == 2


async def test_an_outage_longer_than_the_journal_ends_with_a_block_list() -> None:
    cache = Cache(keep=4)
    cache.serve_some(10)
    with RedisServer(persistent=True) as server:
        async with tree_of(server, "n") as tree, publishing(tree, cache):
            await in_step(tree, cache)
            server.kill()
            cache.serve_some(20, seed=1, batches=True)
            server.start()
            await in_step(tree, cache)
            assert cache.snapshots == 2


async def test_a_goodbye_to_a_redis_that_does_not_answer_comes_to_an_end(server: RedisServer) -> None:
    cache = Cache()
    async with tree_of(server, "n", timeout_s=10 * WAIT_S) as tree:
        async with publishing(tree, cache) as publisher:
            await in_step(tree, cache)
        server.pause()
        try:
            async with asyncio.timeout(WAIT_S):
                await publisher.goodbye()
        finally:
            server.resume()


# More than one speaks


async def test_two_publishers_of_one_replica_do_no_harm(shared: RedisServer) -> None:
    """As when it reports to two routers, of which one hears everything a little later."""
    cache, late = Cache(), Journal("r", 1)
    heard = 0

    def hear(most: int) -> None:
        nonlocal heard
        for _ in range(most):
            batch = cache.journal.batch(heard)
            if batch is not None:
                late.append(batch.events)
                assert late.batch(heard) == batch
                heard += 1

    async with tree_of(shared) as one, another(one) as two, AsyncExitStack() as stack:
        await stack.enter_async_context(publishing(one, cache))
        behind = Publisher(two, late, cache.account, cache.snapshot, pauses_s=PAUSES_S)
        task = asyncio.create_task(behind.run())
        try:
            for step in range(100):
                cache.serve_some(1, seed=step, batches=step % 3 == 0)
                hear(step % 2)
                await asyncio.sleep(0)
            await in_step(one, cache)
            hear(200)
            cache.serve_some(1, seed=-1)
            hear(1)
            await in_step(one, cache)
            assert cache.snapshots <= 2
        finally:
            await end_tasks(task)


async def test_a_restart_replaces_what_was_and_the_old_process_changes_nothing_any_more(
    shared: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = Cache(epoch=1), Cache(epoch=2)
    old.serve_some(10)
    async with tree_of(shared) as tree, publishing(tree, old) as zombie:
        await in_step(tree, old)
        async with publishing(tree, new) as publisher:
            new.serve_some(10, seed=1)
            await in_step(tree, new)
            for _ in range(3):
                old.serve_some(5, seed=2, batches=True)

                async def superseded() -> bool:
                    return not zombie.connected

                await until(superseded)
            await zombie.goodbye()
            new.serve_some(5, seed=3)
            await in_step(tree, new)
        errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1
        assert "a name of its own (--name)" in errors[0]
        await publisher.goodbye()
        await in_step(tree, old)  # it was alive all the time


async def test_the_old_process_hears_of_the_new_one_with_its_next_batch(shared: RedisServer) -> None:
    old = Cache(epoch=1, lease_s=60)
    async with tree_of(shared) as tree, publishing(tree, old) as zombie:
        await in_step(tree, old)
        await tree.register(Cache(epoch=2).account())
        old.serve_some(1)

        async def superseded() -> bool:
            return not zombie.connected

        await until(superseded)


async def test_batches_that_begin_anew_under_the_same_epoch_are_not_taken_for_old_ones(shared: RedisServer) -> None:
    first, second = Cache(epoch=7), Cache(epoch=7)
    first.serve_some(10, batches=True)
    async with tree_of(shared) as tree:
        async with publishing(tree, first):
            await in_step(tree, first)
        second.serve_some(3, seed=1)
        async with publishing(tree, second):
            await in_step(tree, second)


# Against chance


LOST = "acknowledged and lost"


class Faulty(RedisTree):
    """The real tree behind a bad line: each call meets the next of the faults, until there are no more."""

    def __init__(self, link: RedisLink, faults: list[str]) -> None:
        super().__init__(link)
        self.faults = faults
        self.under_way = 0
        self._earlier: list[Callable[[], Awaitable[object]]] = []

    async def register(self, said: Registration) -> int:
        return await self._meet(lambda: RedisTree.register(self, said))

    async def apply(self, batch: EventBatch) -> Applied:
        if self.faults[:1] == [LOST]:
            self.faults.pop(0)
            return Applied(Outcome.APPLIED, batch.seq + 1)
        return await self._meet(lambda: RedisTree.apply(self, batch))

    async def restore(self, snapshot: Snapshot) -> Outcome:
        if self.faults[:1] == [LOST]:
            self.faults.pop(0)
            return Outcome.APPLIED
        return await self._meet(lambda: RedisTree.restore(self, snapshot))

    async def calm(self) -> bool:
        """No more faults will happen."""
        return not self.faults and not self.under_way

    async def _meet(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        fault = self.faults.pop(0) if self.faults else ""
        self.under_way += 1
        try:
            await self._suffer(fault, call)
            self._earlier.append(call)
            return await call()
        finally:
            self.under_way -= 1

    async def _suffer(self, fault: str, call: Callable[[], Awaitable[object]]) -> None:
        match fault:
            case "fail before":
                raise Disconnected("the line broke")
            case "fail after":
                await call()
                raise Disconnected("the line broke")
            case "twice":
                await call()
            case "an old one again":
                for earlier in random.Random(len(self.faults)).sample(self._earlier, min(3, len(self._earlier))):
                    await earlier()
            case "wiped":
                await self.link.client.flushall()


FAULTS = ["", "", "fail before", "fail after", "twice", "an old one again", "wiped", LOST]
DEEDS = st.one_of(
    st.lists(st.integers(0, 2), min_size=1, max_size=12),  # a prompt
    st.sampled_from(["end the batch", "breathe", "fall behind", "settle", "restart", "restart beside the old one"]),
)


@settings(max_examples=25, deadline=None)  # reading all of a tree back takes longer than the rest
@given(
    faults=st.lists(st.lists(st.sampled_from(FAULTS), max_size=15), min_size=1, max_size=2),
    deeds=st.lists(DEEDS, max_size=30),
)
def test_whatever_happens_redis_ends_up_equal(
    shared: RedisServer, faults: list[list[str]], deeds: list[list[int] | str]
) -> None:
    asyncio.run(history(shared, faults, deeds))


async def history(server: RedisServer, faults: list[list[str]], deeds: list[list[int] | str]) -> None:
    """As many publishers as there are lists of faults."""
    async with tree_of(server) as tree, AsyncExitStack() as everything:
        trees = [Faulty(tree.link, list(each)) for each in faults]
        cache = Cache(keep=4, lease_s=0.06)
        stack = AsyncExitStack()
        for each in trees:
            await stack.enter_async_context(publishing(each, cache))
        for deed in deeds:
            match deed:
                case "end the batch":
                    cache.close()
                case "breathe":
                    await tree.open()
                case "fall behind":
                    cache.serve_some(6, batches=True)
                case "settle":
                    await told_all(tree, cache)
                case "restart" | "restart beside the old one":
                    if deed == "restart":
                        await stack.aclose()
                    else:
                        everything.push_async_exit(stack)
                        stack = AsyncExitStack()
                    cache = Cache(epoch=cache.epoch + 1, keep=4, lease_s=0.06)
                    for each in trees:
                        await stack.enter_async_context(publishing(each, cache))
                case prompt:
                    assert isinstance(prompt, list)
                    cache.serve(*prompt)
        everything.push_async_exit(stack)
        for each in trees:
            await until(each.calm)
        await in_step(tree, cache)
