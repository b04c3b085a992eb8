"""The tree in Redis against a model, and a mirror of it: whatever happens, in whatever order, all three agree."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.exceptions import OutOfMemoryError
from xxhash import xxh3_64_intdigest

from radix.events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Event,
    EventBatch,
    Registration,
    Snapshot,
    pack_keys,
)
from radix.feed import Outcome
from radix.index import PrefixIndex
from radix.mirror import Mirror
from radix.redis_link import open_link
from radix.redis_tree import BUCKETS, RESTORE, Applied, RedisTree, Superseded, _Scripts
from radix.tasks import end_tasks
from radix.tree_log import pack_events
from tests.redis_server import RedisServer

NAMESPACES = count()
WAIT_S = 10.0


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@asynccontextmanager
async def empty_tree(server: RedisServer) -> AsyncIterator[RedisTree]:
    """In a namespace of its own."""
    link = open_link(f"{server.url}?namespace=n{next(NAMESPACES)}")
    try:
        yield RedisTree(link)
    finally:
        await link.close()


@asynccontextmanager
async def mirror_of(tree: RedisTree) -> AsyncIterator[Mirror]:
    """Running, and in step."""
    mirror = Mirror(tree, PrefixIndex(), time.monotonic)
    task = asyncio.create_task(mirror.run())
    try:
        await in_step(mirror, tree)
        yield mirror
    finally:
        await end_tasks(task)


async def in_step(mirror: Mirror, tree: RedisTree) -> None:
    """Waits until the mirror has applied all that is logged."""
    deadline = time.monotonic() + WAIT_S
    while not (mirror.current and mirror._position == await tree.last()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def held(mirror: Mirror, name: str) -> set[int]:
    member = mirror.members[name]
    return {key for _, keys in mirror.index.held(member.rid) for key in keys}


def account(name: str, epoch: int, lease_s: float = 60.0) -> Registration:
    return Registration(name, f"http://{name}", epoch, ("m",), 16, 1000, lease_s=lease_s)


def stored(*keys: int, parent: int | None = None) -> BlockStored:
    return BlockStored(parent, pack_keys(keys))


def removed(*keys: int) -> BlockRemoved:
    return BlockRemoved(pack_keys(keys))


async def joined(tree: RedisTree, name: str = "r", epoch: int = 1, *events: BlockStored, seq: int = 0) -> None:
    """Registered, with these blocks."""
    assert await tree.register(account(name, epoch)) == RESTORE
    assert await tree.restore(Snapshot(name, epoch, seq, events)) is Outcome.APPLIED


# Examples


async def test_a_batch_is_applied_once_and_in_order(server: RedisServer) -> None:
    async with empty_tree(server) as tree:
        await joined(tree)
        first = EventBatch("r", 1, 0, (stored(1, 2, 3),))
        second = EventBatch("r", 1, 1, (removed(3), stored(9, parent=2)))
        assert await tree.apply(second) == Applied(Outcome.GAP, 0)
        assert await tree.apply(first) == Applied(Outcome.APPLIED, 1)
        assert await tree.apply(first) == Applied(Outcome.DUPLICATE, 1)
        assert await tree.apply(second) == Applied(Outcome.APPLIED, 2)
        assert await tree.residency("r") == (2, {1, 2, 9})


async def test_only_the_newest_incarnation_counts(server: RedisServer) -> None:
    async with empty_tree(server) as tree:
        # Neighbours that a Lua number could not tell apart.
        old, new = 2**60 + 1, 2**60 + 2
        assert (await tree.apply(EventBatch("r", old, 0, ()))).outcome is Outcome.UNKNOWN
        await joined(tree, "r", old, stored(1, 2))
        await joined(tree, "r", new, stored(5))
        assert (await tree.apply(EventBatch("r", old, 0, (stored(7),)))).outcome is Outcome.STALE
        assert await tree.restore(Snapshot("r", old, 3, (stored(7),))) is Outcome.STALE
        with pytest.raises(Superseded, match="'r'"):
            await tree.register(account("r", old))
        assert not await tree.leave("r", old)
        assert await tree.residency("r") == (0, {5})
        assert (await tree.apply(EventBatch("r", new + 1, 0, ()))).outcome is Outcome.UNKNOWN


async def test_a_block_list_from_before_what_is_applied_changes_nothing(server: RedisServer) -> None:
    async with empty_tree(server) as tree:
        await joined(tree, "r", 1, stored(1), seq=7)
        assert (await tree.apply(EventBatch("r", 1, 7, (stored(2, parent=1),)))).outcome is Outcome.APPLIED
        assert await tree.restore(Snapshot("r", 1, 7, (stored(9),))) is Outcome.STALE
        assert await tree.residency("r") == (8, {1, 2})


async def test_a_doubted_incarnation_must_hand_in_its_block_list_first(server: RedisServer) -> None:
    async with empty_tree(server) as tree:
        await joined(tree, "r", 1, stored(1), seq=7)
        assert not await tree.doubt("r", 2)
        assert await tree.doubt("r", 1)
        assert await tree.apply(EventBatch("r", 1, 7, (stored(2, parent=1),))) == Applied(Outcome.GAP, RESTORE)
        assert await tree.register(account("r", 1)) == RESTORE
        assert await tree.residency("r") == (RESTORE, {1})  # until then, what was known
        assert await tree.restore(Snapshot("r", 1, 7, (stored(1, 3),))) is Outcome.APPLIED
        assert await tree.residency("r") == (7, {1, 3})


async def test_a_restore_that_a_wipe_cut_in_two_touches_nobody_else(server: RedisServer) -> None:
    """A wiped Redis counts its slots anew, so another restore may have the same slot."""
    async with empty_tree(server) as tree:
        await tree.register(account("a", 1))
        slot = await tree._run(_Scripts.RESTORE_BEGIN, "a", 1, 0, "token-of-a")
        client = tree.link.client
        for key in [key async for key in client.scan_iter(f"{tree.prefix}*")]:
            await client.delete(key)
        await tree.register(account("b", 1))
        assert await tree._run(_Scripts.RESTORE_BEGIN, "b", 1, 0, "token-of-b") == slot
        assert not await tree._run(_Scripts.RESTORE_PART, slot, "token-of-a", 0, pack_events([stored(1)])[1])
        assert await tree._run(_Scripts.RESTORE_COMMIT, "a", 1, 0, slot, "token-of-a", 0) == b"unknown"
        assert await tree._run(_Scripts.RESTORE_COMMIT, "b", 1, 0, slot, "token-of-b", 0) == b"applied"
        assert await tree.residency("b") == (0, set())


async def test_names_may_hold_anything(server: RedisServer) -> None:
    name = "two words {tag} 1 2 3"
    async with empty_tree(server) as tree, mirror_of(tree) as mirror:
        await joined(tree, name, 1, stored(1))
        await tree.apply(EventBatch(name, 1, 0, (stored(2, parent=1),)))
        await in_step(mirror, tree)
        assert held(mirror, name) == {1, 2}
        await tree.leave(name, 1)
        await in_step(mirror, tree)
        assert not mirror.members


async def test_keys_and_parents_use_all_64_bits(server: RedisServer) -> None:
    keys = [2**64 - 1, 0, 2**63, 0x0A0D000A0D000A0D, 255]
    async with empty_tree(server) as tree:
        await joined(tree, "r", 2**64 - 1, stored(*keys))
        async with mirror_of(tree) as mirror:
            assert await tree.residency("r") == (0, set(keys))
            assert mirror.index.match(keys) == {mirror.members["r"].rid: 5}
            await tree.apply(EventBatch("r", 2**64 - 1, 0, (removed(0),)))
            await in_step(mirror, tree)
            assert mirror.index.match(keys) == {mirror.members["r"].rid: 1}


async def test_a_lease_that_runs_out_ends_the_incarnation(server: RedisServer) -> None:
    async with empty_tree(server) as tree:
        await tree.register(account("late", 1, lease_s=0.001))
        await tree.register(account("punctual", 1))
        async with mirror_of(tree) as mirror:
            deadline = time.monotonic() + WAIT_S
            while not (ended := await tree.expire(0)):
                assert time.monotonic() < deadline
            assert ended == ["late"]
            assert await tree.residency("late") is None
            await in_step(mirror, tree)
            assert list(mirror.members) == ["punctual"]
            assert await tree.register(account("late", 1)) == RESTORE  # it lives after all


async def test_nobody_loses_a_lease_because_redis_stood_still(server: RedisServer) -> None:
    """The call that waited in a stopped Redis is the first to run when it goes on."""
    async with empty_tree(server) as tree:
        await tree.expire(60)
        await tree.register(account("r", 1, lease_s=0.001))
        client = tree.link.client
        await client.hset(f"{tree.prefix}:meta", mapping={"mercy": "0", "watched": str(int(time.time() * 1000) - 2500)})
        assert await tree.expire(60) == []
        assert await tree.expire(60) == []
        await client.hset(f"{tree.prefix}:meta", "mercy", "0")  # the time of grace has passed
        assert await tree.expire(60) == ["r"]


async def test_sweeping_frees_what_void_generations_held(server: RedisServer) -> None:
    async with empty_tree(server) as tree:
        await joined(tree, "a", 1, stored(*range(1, 500)))
        await joined(tree, "b", 1, stored(*range(1, 100)))
        await joined(tree, "a", 2, stored(1, 2))
        await tree.leave("b", 1)
        while await tree.sweep(4096):
            pass
        nodes = [item async for item in tree.dump()]
        assert sum(len(pairs) for _, pairs in nodes) == 2 * 16
        buckets = [key async for key in tree.link.client.scan_iter(f"{tree.prefix}:b:*")]
        assert len(buckets) == 2
        assert await tree.residency("a") == (0, {1, 2})
        # The freed slots are given out again, and nothing of their past is left in a mirror.
        async with mirror_of(tree) as mirror:
            await joined(tree, "c", 1, stored(7))
            await in_step(mirror, tree)
            assert held(mirror, "c") == {7}


async def test_a_mirror_that_begins_late_knows_everything(server: RedisServer) -> None:
    async with empty_tree(server) as tree:
        # A tree with branches, and a chain without its beginning.
        await joined(
            tree, "a", 1, stored(1, 2, 3, 4), stored(10, 11, parent=2), stored(12, parent=2), stored(50, parent=49)
        )
        await joined(tree, "b", 1, stored(1, 2, 3))
        async with mirror_of(tree) as mirror:
            a, b = mirror.members["a"].rid, mirror.members["b"].rid
            assert mirror.index.match([1, 2, 3, 4]) == {a: 4, b: 3}
            assert mirror.index.match([1, 2, 10, 11]) == {a: 4, b: 2}
            assert held(mirror, "a") == {1, 2, 3, 4, 10, 11, 12, 50}
            mirror.index.check_integrity()


async def test_the_log_is_bounded_by_its_bytes(server: RedisServer) -> None:
    async with empty_tree(server) as tree:
        small = RedisTree(tree.link, log_bytes=100_000)
        await joined(small)
        for seq in range(1000):
            await small.apply(EventBatch("r", 1, seq, (stored(*range(seq, seq + 100)),)))
        assert 100 < await tree.link.client.xlen(f"{tree.prefix}:log") < 200
        assert await tree.residency("r") == (1000, set(range(1099)))


async def test_a_log_that_was_cut_makes_the_mirror_begin_anew(server: RedisServer) -> None:
    async with empty_tree(server) as tree:
        await joined(tree)
        async with mirror_of(tree) as mirror:
            client = tree.link.client
            await client.xadd(f"{tree.prefix}:log", {"a": "1-1", "h": "free 9", "e": ""}, id="999999999-0")
            await client.hset(f"{tree.prefix}:meta", mapping={"last": "999999999-0", "bytes": "999999999"})
            await tree.apply(EventBatch("r", 1, 0, (stored(1, 2),)))
            deadline = time.monotonic() + WAIT_S
            while not mirror.resyncs:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.001)
            await in_step(mirror, tree)
            assert held(mirror, "r") == {1, 2}


async def test_a_tree_that_lost_its_head_begins_anew(server: RedisServer) -> None:
    """As when its keys are evicted, or deleted one by one."""
    async with empty_tree(server) as tree, mirror_of(tree) as mirror:
        await joined(tree, "a", 1, stored(1, 2))
        await joined(tree, "b", 1, stored(1, 9))
        await tree.link.client.delete(f"{tree.prefix}:meta")
        assert (await tree.apply(EventBatch("a", 1, 0, (stored(3),)))).outcome is Outcome.UNKNOWN
        await joined(tree, "c", 1, stored(7))
        await joined(tree, "a", 1, stored(1, 2))
        await in_step(mirror, tree)
        assert await tree.residency("a") == (0, {1, 2})
        assert await tree.residency("b") is None
        assert await tree.residency("c") == (0, {7})
        assert held(mirror, "a") == {1, 2}
        assert held(mirror, "b") == {1, 9}  # it may come back
        assert held(mirror, "c") == {7}


async def fill(tree: RedisTree) -> None:
    """Stores blocks until Redis takes no more."""
    for seq in range(10_000):
        keys = [xxh3_64_intdigest(bytes(8), seq << 16 | number) for number in range(256)]
        assert (await tree.apply(EventBatch("a", 1, seq, (stored(*keys),)))).outcome is Outcome.APPLIED


async def test_a_full_redis_still_renews_leases_and_sweeps() -> None:
    settings = ("maxmemory 3mb", "maxmemory-policy noeviction")
    with RedisServer(settings=settings) as small:
        async with empty_tree(small) as tree:
            await joined(tree, "a", 1)
            with pytest.raises(OutOfMemoryError):
                await fill(tree)
            assert await tree.register(account("a", 1)) > 0
            await tree.leave("a", 1)
            while await tree.sweep(4096):
                pass
            await joined(tree, "a", 2, stored(1))
            assert await tree.residency("a") == (0, {1})


async def test_a_wiped_redis_does_not_make_a_mirror_forget(server: RedisServer) -> None:
    async with empty_tree(server) as tree:
        await joined(tree, "r", 1, stored(1, 2))
        async with mirror_of(tree) as mirror:
            client = tree.link.client
            for key in [key async for key in client.scan_iter(f"{tree.prefix}*")]:
                await client.delete(key)
            deadline = time.monotonic() + WAIT_S
            while not mirror.resyncs:  # nothing is logged: the mirror must notice by itself
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            await in_step(mirror, tree)
            assert held(mirror, "r") == {1, 2}
            assert await tree.register(account("r", 1)) == RESTORE
            await in_step(mirror, tree)
            assert held(mirror, "r") == {1, 2}
            await tree.restore(Snapshot("r", 1, 5, (stored(1, 3),)))
            await in_step(mirror, tree)
            assert held(mirror, "r") == {1, 3}


# Against a model


@dataclass
class Truth:
    """A replica as it really is."""

    name: str
    epoch: int = 1
    seq: int = 0
    blocks: dict[int, int | None] = field(default_factory=dict)  # key -> parent
    unsent: list[EventBatch] = field(default_factory=list)

    def snapshot(self) -> Snapshot:
        events = tuple(stored(key, parent=parent) for key, parent in self.blocks.items())
        return Snapshot(self.name, self.epoch, self.seq, events)

    def step(self, data: st.DataObject) -> None:
        """Something happens to its blocks."""
        events: list[Event] = []
        for _ in range(data.draw(st.integers(0, 3))):
            match data.draw(st.sampled_from(["store", "store", "remove", "clear"])):
                case "store":
                    # A key names its prefix, so its parent is always the same.
                    path = data.draw(st.sampled_from(PATHS))
                    parent, keys = (None, path) if data.draw(st.booleans()) else (path[0], path[1:])
                    for key, before in zip(keys, [parent, *keys], strict=False):
                        self.blocks[key] = before
                    events.append(stored(*keys, parent=parent))
                case "remove":
                    keys = data.draw(st.lists(st.sampled_from(KEYS), max_size=4))
                    for key in keys:
                        self.blocks.pop(key, None)
                    events.append(removed(*keys))
                case "clear":
                    self.blocks.clear()
                    events.append(AllBlocksCleared())
        self.unsent.append(EventBatch(self.name, self.epoch, self.seq, tuple(events)))
        self.seq += 1

    def restart(self) -> None:
        self.epoch += 1
        self.seq = 0
        self.blocks = {}
        self.unsent = []


# Chains that share beginnings; keys spread over buckets.
PATHS = [
    [1 << 40, 2 << 40, 3 << 40, 4],
    [1 << 40, 2 << 40, 5],
    [1 << 40, 6, 7 << 50, 8],
    [9, 10 << 30, 11],
    [9, 12],
]
KEYS = sorted({key for path in PATHS for key in path})


async def deliver(tree: RedisTree, truth: Truth) -> None:
    """What a careful reporter does until the tree has everything."""
    due = await tree.register(account(truth.name, truth.epoch))
    first = truth.unsent[0].seq if truth.unsent else truth.seq
    if first <= due <= truth.seq and [batch.seq for batch in truth.unsent] == list(range(first, truth.seq)):
        for batch in truth.unsent:
            assert (await tree.apply(batch)).outcome in (Outcome.APPLIED, Outcome.DUPLICATE)
    else:
        assert await tree.restore(truth.snapshot()) is Outcome.APPLIED
    truth.unsent = []


async def something_happens(tree: RedisTree, truth: Truth, data: st.DataObject) -> None:
    faults = ["step", "step", "send", "lose", "repeat", "swap", "deliver", "restart", "leave", "late", "sweep"]
    match data.draw(st.sampled_from(faults)):
        case "step":
            truth.step(data)
        case "send" if truth.unsent:
            await tree.apply(truth.unsent.pop(0))
        case "lose" if truth.unsent:
            truth.unsent.pop(0)
        case "repeat" if truth.unsent:
            await tree.apply(truth.unsent[0])
        case "swap" if len(truth.unsent) > 1:
            await tree.apply(truth.unsent.pop(1))
        case "deliver":
            await deliver(tree, truth)
        case "restart":
            truth.restart()
        case "leave":
            await tree.leave(truth.name, truth.epoch)
        case "late":
            await tree.apply(EventBatch(truth.name, truth.epoch - 1, 0, (stored(99),)))  # of the incarnation before
        case "sweep":
            await tree.sweep(BUCKETS // 2)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_tree_mirror_and_replicas_agree_in_the_end(server: RedisServer, data: st.DataObject) -> None:
    asyncio.run(history(server, data))


async def history(server: RedisServer, data: st.DataObject) -> None:
    async with empty_tree(server) as tree, mirror_of(tree) as early:
        fleet = [Truth("a"), Truth("b"), Truth("c")]
        for _ in range(data.draw(st.integers(0, 40))):
            await something_happens(tree, data.draw(st.sampled_from(fleet)), data)
        for truth in fleet:
            await deliver(tree, truth)
        async with mirror_of(tree) as late:
            await in_step(early, tree)
            for mirror in (early, late):
                assert mirror.members.keys() == {"a", "b", "c"}
                assert mirror.malformed == 0
                mirror.index.check_integrity()
            for truth in fleet:
                assert await tree.residency(truth.name) == (truth.seq, set(truth.blocks))
                assert held(early, truth.name) == held(late, truth.name) == set(truth.blocks)
                for path in PATHS:
                    overlap = next((at for at, key in enumerate(path) if key not in truth.blocks), len(path))
                    for mirror in (early, late):
                        assert mirror.index.match(path).get(mirror.members[truth.name].rid, 0) == overlap
