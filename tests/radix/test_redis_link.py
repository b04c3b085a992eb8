"""One link works alike on every shape of Redis, says "not now" in one tuple of errors, and recovers by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.client import PubSub
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, ReadOnlyError, ResponseError

from radix.redis_link import (
    UNAVAILABLE,
    Client,
    Hindered,
    RedisLink,
    Script,
    explain,
    open_link,
    run_script,
)
from tests.redis_server import RedisCluster3, RedisServer, Sentinels, admin, has_tls, tls_files, wait_until

KEY = "{radixgate:test}:key"
OTHER = "{radixgate:test}:other"
STREAM = "{radixgate:test}:log"
CHANNEL = "{radixgate:test}:news"
WAIT_S = 20.0  # for what must happen; nothing waits this long when all is well

PUT = Script("redis.call('SET', KEYS[1], ARGV[1]) return {redis.call('GET', KEYS[1]), redis.call('EXISTS', KEYS[2])}")
TELL = Script("return redis.call('PUBLISH', KEYS[1], ARGV[1])")
NAME = Script("redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])")
GROW = Script("return redis.call('APPEND', KEYS[1], ARGV[1])")
NOW = Script("return redis.call('TIME')[1]")
FOREVER = Script("while redis.call('EXISTS', KEYS[1]) == 0 do end")

# All that RadixGate needs: its own keys and channels, and no administration.
RIGHTS = "on >pw resetkeys ~{radixgate:* resetchannels &{radixgate:* -@all +@read +@write +@stream +@scripting +@pubsub"
RIGHTS += " +@connection +time +cluster|slots"


@asynccontextmanager
async def linked(url: str, timeout_s: float = 5.0) -> AsyncIterator[RedisLink]:
    link = open_link(url, timeout_s=timeout_s)
    try:
        yield link
    finally:
        await link.close()


async def until_it_works(client: Client) -> Any:
    """Puts a value as a caller does: again and again, as long as the error says "not now"."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await run_script(client, PUT, [KEY, OTHER], [b"again"])
            except UNAVAILABLE:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def subscribed(client: Client) -> AsyncIterator[PubSub]:
    await client.initialize()  # without it, a cluster's client knows of no node to subscribe at
    subscription = client.pubsub(ignore_subscribe_messages=True)
    try:
        await subscription.subscribe(CHANNEL)
        yield subscription
    finally:
        await subscription.aclose()  # type: ignore[no-untyped-call]  # not typed in redis-py


async def heard(subscription: PubSub) -> Any:
    async with asyncio.timeout(WAIT_S):
        while True:
            message = await subscription.get_message(timeout=1.0)
            if message is not None:
                return message["data"]


async def heard_again(client: Client, subscription: PubSub) -> Any:
    """After an error, redis-py subscribes anew by itself; what was published meanwhile is lost."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                message = await subscription.get_message(timeout=0.1)
                if message is not None:
                    return message["data"]
                await client.publish(CHANNEL, b"news")
            except UNAVAILABLE:
                continue


@pytest.fixture(scope="module")
def single() -> Iterator[RedisServer]:
    with RedisServer(settings=[f"user ann {RIGHTS}"]) as server:
        yield server


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster3]:
    users = [f"user ann {RIGHTS}", "user bob on >pw ~* &* -@all +@connection"]
    with RedisCluster3(persistent=True, settings=users) as servers:
        yield servers


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as servers:
        yield servers


@pytest.fixture(params=["single", "unix", "cluster", "sentinels"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "unix":
        server: RedisServer = request.getfixturevalue("single")
        return f"unix://{server.socket_path}"
    found: str = request.getfixturevalue(request.param).url
    return found


# Every shape


async def test_scripts_run_with_keys_of_one_hash_tag_and_replies_are_bytes(url: str) -> None:
    async with linked(url) as link:
        assert await run_script(link.client, PUT, [KEY, OTHER], [b"\x00\xff"]) == [b"\x00\xff", 0]
        assert await link.client.get(KEY) == b"\x00\xff"


async def test_scripts_survive_that_redis_forgets_them(url: str) -> None:
    async with linked(url) as link:
        await run_script(link.client, PUT, [KEY, OTHER], [b"1"])
        await link.client.script_flush()
        assert await run_script(link.client, PUT, [KEY, OTHER], [b"2"]) == [b"2", 0]


async def test_a_reader_that_blocks_gets_what_is_added_meanwhile(url: str) -> None:
    async with linked(url, timeout_s=2.0) as link:
        assert await read(link.client, "$", 300) == []
        reading = asyncio.create_task(read(link.client, "0", 1000))
        entry = await link.client.xadd(STREAM, {"d": b"\x00\xff"})
        assert await reading == [[STREAM.encode(), [(entry, {b"d": b"\x00\xff"})]]]
        await link.client.delete(STREAM)


async def test_what_is_published_reaches_subscribers(url: str) -> None:
    async with linked(url) as link:
        async with subscribed(link.client) as subscription:
            await link.client.publish(CHANNEL, b"\x00\xff")
            await run_script(link.client, TELL, [CHANNEL], [b"from a script"])
            assert [await heard(subscription) for _ in range(2)] == [b"\x00\xff", b"from a script"]


async def read(client: Client, after: str, block_ms: int) -> Any:
    return await client.xread({STREAM: after}, block=block_ms)


async def test_a_failing_script_is_not_taken_for_a_redis_that_is_away(url: str) -> None:
    async with linked(url) as link:
        with pytest.raises(ResponseError, match="no good") as failed:
            await run_script(link.client, Script("return redis.error_reply('no good')"), [KEY])
        assert not isinstance(failed.value, UNAVAILABLE)


async def test_a_link_closes_twice_and_unused() -> None:
    for url in ("redis://h", "unix:///r.sock", "redis+sentinel://h/m", "redis+cluster://h"):
        link = open_link(url)
        await link.close()
        await link.close()


# Away, slow, back again


async def test_a_paused_redis_is_unavailable_in_time_and_works_again_when_it_goes_on(single: RedisServer) -> None:
    await pauses(single, single.url)


async def test_a_paused_node_of_a_cluster_is_too(cluster: RedisCluster3) -> None:
    await pauses(cluster.node_of(KEY), cluster.url)
    cluster.wait_until_ok()


async def test_a_sentinel_that_does_not_answer_is_passed_over(sentinels: Sentinels, single: RedisServer) -> None:
    single.pause()
    try:
        async with linked(sentinels.url.replace("://", f"://{single.address},"), timeout_s=1.0) as link:
            assert await run_script(link.client, PUT, [KEY, OTHER], [b"1"]) == [b"1", 0]
    finally:
        single.resume()


async def pauses(server: RedisServer, url: str) -> None:
    async with linked(url, timeout_s=0.3) as link:
        await run_script(link.client, PUT, [KEY, OTHER], [b"before"])
        server.pause()
        try:
            for _ in range(2):  # on the connection that was there, and on a new one
                with pytest.raises(UNAVAILABLE):
                    async with asyncio.timeout(WAIT_S):
                        await run_script(link.client, PUT, [KEY, OTHER], [b"while paused"])
        finally:
            server.resume()
        assert await until_it_works(link.client) == [b"again", 0]


@pytest.mark.parametrize("persistent", [False, True])
async def test_a_killed_redis_is_unavailable_and_works_again_when_it_is_back(persistent: bool) -> None:
    with RedisServer(persistent=persistent) as server:
        async with linked(server.url) as link:
            await run_script(link.client, PUT, [KEY, OTHER], [b"before"])
            server.kill()
            with pytest.raises(UNAVAILABLE):
                await run_script(link.client, PUT, [KEY, OTHER], [b"while away"])
            server.start()
            assert await link.client.get(KEY) == (b"before" if persistent else None)
            assert await until_it_works(link.client) == [b"again", 0]


async def test_a_killed_node_of_a_cluster_is_unavailable_and_works_again_when_it_is_back(
    cluster: RedisCluster3,
) -> None:
    async with linked(cluster.url) as link:
        await run_script(link.client, PUT, [KEY, OTHER], [b"before"])
        async with subscribed(link.client) as subscription:
            node = cluster.node_of(KEY)
            node.kill()
            for _ in range(3):
                with pytest.raises(UNAVAILABLE):
                    await run_script(link.client, PUT, [KEY, OTHER], [b"while away"])
            with pytest.raises(UNAVAILABLE):
                await heard(subscription)
        node.start()
        cluster.wait_until_ok()
        assert await link.client.get(KEY) == b"before"
        assert await until_it_works(link.client) == [b"again", 0]


async def test_nothing_listens_at_all() -> None:
    with RedisServer() as server:
        address, path = server.address, server.socket_path
    for url in (f"redis://{address}", f"unix://{path}", f"redis+sentinel://{address}/m", f"redis+cluster://{address}"):
        async with linked(url) as link:
            with pytest.raises(UNAVAILABLE) as failed:
                await run_script(link.client, PUT, [KEY, OTHER], [b"1"])
            assert explain(failed.value)


async def test_after_a_failover_the_new_master_is_found() -> None:
    with Sentinels() as servers:
        async with linked(servers.url) as link, subscribed(link.client) as subscription:
            await run_script(link.client, PUT, [KEY, OTHER], [b"before"])
            servers.fail_over()
            assert await until_it_works(link.client) == [b"again", 0]
            with admin(servers.master()) as client:
                assert client.get(KEY) == b"again"
            assert await heard_again(link.client, subscription) == b"news"


async def test_a_master_that_became_a_replica_is_left_for_the_new_one() -> None:
    with Sentinels() as servers:
        async with linked(servers.url) as link:
            await run_script(link.client, PUT, [KEY, OTHER], [b"before"])
            old, new = servers.master(), servers.replica()
            with admin(servers.sentinels[0]) as client:
                client.sentinel_failover(servers.SERVICE)
            wait_until(lambda: servers.master() is new)
            with admin(old) as client:  # the sentinel would take ten seconds more
                client.replicaof("127.0.0.1", str(new.port))
            assert await until_it_works(link.client) == [b"again", 0]
            with admin(new) as client:
                assert client.get(KEY) == b"again"


async def test_redirections_of_a_cluster_are_followed(cluster: RedisCluster3) -> None:
    async with linked(cluster.url) as link:
        await link.client.delete(KEY, OTHER)
        target = cluster.start_moving(KEY)  # ASK
        assert await run_script(link.client, NAME, [KEY], [b"asked"]) == b"asked"
        cluster.finish_moving(KEY, target)  # MOVED
        assert await run_script(link.client, NAME, [KEY], [b"moved"]) == b"moved"
        with admin(target) as client:
            assert client.get(KEY) == b"moved"


# Redis is there and says no


async def fill(client: Client) -> None:
    for _ in range(100):
        await run_script(client, GROW, [KEY], [bytes(100_000)])


async def test_a_full_redis_is_unavailable() -> None:
    with RedisServer(settings=["maxmemory 1mb"]) as server:
        async with linked(server.url) as link:
            with pytest.raises(OutOfMemoryError) as failed:
                await fill(link.client)
            assert isinstance(failed.value, UNAVAILABLE)


async def test_a_replica_that_takes_no_writes_is_unavailable(sentinels: Sentinels) -> None:
    async with linked(sentinels.replica().url) as link:
        with pytest.raises(ReadOnlyError) as failed:
            await run_script(link.client, NAME, [KEY], [b"1"])
        assert isinstance(failed.value, UNAVAILABLE)


async def test_a_master_that_misses_its_replicas_is_unavailable() -> None:
    with RedisServer(settings=["min-replicas-to-write 1"]) as server:
        async with linked(server.url) as link:
            with pytest.raises(Hindered) as failed:
                await run_script(link.client, NAME, [KEY], [b"1"])
            assert isinstance(failed.value, UNAVAILABLE)


async def get_for_ever(client: Client) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            await client.get(KEY)


@pytest.mark.parametrize("kind", ["single", "cluster"])
async def test_a_redis_that_is_busy_with_a_script_is_unavailable(kind: str, request: pytest.FixtureRequest) -> None:
    found: RedisServer | RedisCluster3 = request.getfixturevalue(kind)
    server = found if isinstance(found, RedisServer) else found.node_of(KEY)
    with admin(server) as client:
        client.config_set("lua-time-limit", 1)
        async with linked(found.url) as link:
            await link.client.get(KEY)
            running = asyncio.create_task(run_script(link.client, FOREVER, [OTHER]))
            with pytest.raises(Hindered) as failed:
                await get_for_ever(link.client)
            assert isinstance(failed.value, UNAVAILABLE)
            client.script_kill()
            with pytest.raises(ResponseError):
                await running


@pytest.mark.parametrize("kind", ["single", "cluster"])
async def test_a_user_needs_no_rights_beyond_our_keys_and_channels(kind: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(kind).url
    async with linked(url.replace("://", "://ann:pw@")) as link:
        assert await run_script(link.client, PUT, [KEY, OTHER], [b"1"]) == [b"1", 0]
        assert int(await run_script(link.client, NOW, [KEY])) > 0
        assert await read(link.client, "$", 1) == []
        async with subscribed(link.client) as subscription:
            await run_script(link.client, TELL, [CHANNEL], [b"news"])
            assert await heard(subscription) == b"news"
        with pytest.raises(NoPermissionError) as failed:
            await link.client.get("{else}:key")
        assert not isinstance(failed.value, UNAVAILABLE)
        assert "denies this to the user" in explain(failed.value)


@pytest.mark.parametrize("kind", ["single", "cluster"])
async def test_a_wrong_password_is_told(kind: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(kind).url
    async with linked(url.replace("://", "://ann:hunter2@")) as link:
        with pytest.raises(UNAVAILABLE) as failed:
            await link.client.get(KEY)
        assert "refuses the user or the password" in explain(failed.value)
        assert "hunter2" not in explain(failed.value) + repr(link) + link.shown


async def test_a_cluster_that_may_not_be_asked_for_its_nodes_is_told(cluster: RedisCluster3) -> None:
    async with linked(cluster.url.replace("://", "://bob:pw@")) as link:
        with pytest.raises(UNAVAILABLE) as failed:
            await link.client.get(KEY)
        assert "denies this to the user" in explain(failed.value)
        assert "'cluster" in explain(failed.value)  # the command that needs the right


async def test_a_missing_password_is_told() -> None:
    with RedisServer(password="pw") as server:
        async with linked(f"redis://{server.address}") as link:
            with pytest.raises(AuthenticationError) as failed:
                await link.client.get(KEY)
            assert "refuses the user or the password" in explain(failed.value)


async def test_sentinels_are_given_their_own_password_only() -> None:
    with Sentinels(password="pw", sentinel_password="other") as servers:
        url = servers.url.replace("://", "://:pw@")
        async with linked(f"{url}?sentinel_password=other") as link:
            assert await run_script(link.client, PUT, [KEY, OTHER], [b"1"]) == [b"1", 0]
        async with linked(url) as link:
            with pytest.raises(UNAVAILABLE) as failed:
                await link.client.get(KEY)
            assert "sentinel_password" in explain(failed.value)


@pytest.mark.parametrize("shape", [RedisServer, RedisCluster3, Sentinels])
async def test_everything_can_go_over_tls(shape: type[RedisServer | RedisCluster3 | Sentinels], tmp_path: Path) -> None:
    if not has_tls():
        pytest.skip("the redis-server here was built without TLS")
    with shape(tls=tls_files(tmp_path)) as server:
        async with linked(server.url) as link:
            assert await run_script(link.client, PUT, [KEY, OTHER], [b"1"]) == [b"1", 0]
            async with subscribed(link.client) as subscription:
                await run_script(link.client, TELL, [CHANNEL], [b"news"])
                assert await heard(subscription) == b"news"
        async with linked(server.url.partition("?")[0]) as link:  # trusts other authorities only
            with pytest.raises(UNAVAILABLE):
                await link.client.get(KEY)
