"""Routers that share one tree: what one of them learns, all of them know, and Redis may come and go meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any
from uuid import uuid4

import httpx
import pytest

from radix.events import BlockRemoved, BlockStored, Registration, decode_snapshot, pack_keys
from radix.redis_link import open_link
from radix.redis_tree import RedisTree
from router.config import ReplicaConfig
from tests.redis_server import RedisServer, admin
from tests.router.harness import (
    WAIT_S,
    Client,
    Peer,
    RunningRouter,
    chat,
    fleet,
    get_json,
    receipts,
    running_router,
    upstream,
    wait_until,
)
from tests.router.test_joins import Member, state, stored


class Holder(Member):
    """A member whose block list is what it has reported."""

    def __init__(self, name: str, epoch: int, *keys: int) -> None:
        self._parents: dict[int, int | None] = {}
        super().__init__(name, epoch)
        self._hold(stored(*keys))

    def report(self, router: RunningRouter, *events: BlockStored | BlockRemoved) -> httpx.Response:
        for event in events:
            self._hold(event)
        return super().report(router, *events)

    def lose(self, event: BlockStored) -> None:
        """It happens, but the report is lost on the way."""
        self._hold(event)
        self.seq += 1

    def _hold(self, event: BlockStored | BlockRemoved) -> None:
        if isinstance(event, BlockRemoved):
            for key in event.keys:
                del self._parents[key]
        else:
            parents = [event.parent, *event.keys]
            self._parents.update(zip(event.keys, parents, strict=False))
        self.stored = tuple(stored(key, parent=parent) for key, parent in self._parents.items())


@contextmanager
def holder(*keys: int, name: str = "r", epoch: int = 1) -> Iterator[Holder]:
    """A replica that holds these blocks from the start."""
    replica = Holder(name, epoch, *keys)
    try:
        yield replica
    finally:
        replica.close()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
def redis(server: RedisServer) -> str:
    """The URL of a namespace that nobody else uses."""
    return f"{server.url}?namespace={uuid4().hex}"


@contextmanager
def routers(url: str, count: int = 2, **settings: Any) -> Iterator[list[RunningRouter]]:
    settings = {"health_interval": 0.1, **settings}
    with ExitStack() as stack:
        yield [stack.enter_context(running_router(redis=url, **settings)) for _ in range(count)]


def standing(router: RunningRouter) -> dict[str, Any]:
    said: dict[str, Any] = get_json(router.control + "/healthz/ready")["redis"]
    return said


def is_current(router: RunningRouter) -> bool:
    return bool(standing(router)["state"] == "current")


def metric(router: RunningRouter, name: str) -> float:
    lines = httpx.get(router.control + "/metrics", timeout=WAIT_S, verify=False).text.splitlines()
    return next(float(line.split(" ")[1]) for line in lines if line.startswith(name + " "))


def believed(router: RunningRouter, name: str = "r") -> set[int]:
    answer = httpx.get(f"{router.control}/replicas/{name}/residency", timeout=WAIT_S, verify=False)
    return {key for event in decode_snapshot(answer.content).stored for key in event.keys}


def answers_chats(router: RunningRouter) -> bool:
    answer = httpx.post(router.url + "/v1/chat/completions", json=chat(), timeout=WAIT_S, verify=False)
    return answer.status_code == 200


def test_who_joins_one_router_joins_both_with_the_blocks_it_has(redis: str) -> None:
    with holder(1, 2, 3) as replica, routers(redis) as (one, other):
        assert replica.register(one).json() == {"lease_s": 10.0}
        wait_until(lambda: state(one) == state(other) == {"r": ("up", 3)})
        assert [each["reports"] for each in fleet(other)] == ["trusted"]
        assert answers_chats(other)


def test_what_is_reported_to_one_is_known_to_both(redis: str) -> None:
    with holder() as replica, routers(redis) as (one, other):
        replica.register(one)
        assert replica.report(one, stored(1, 2, 3)).status_code == 202
        assert replica.report(one, BlockRemoved(pack_keys([3]))).status_code == 202
        assert replica.report(one, stored(9, parent=2)).status_code == 202
        wait_until(lambda: state(one) == state(other) == {"r": ("up", 3)})
        assert believed(one) == believed(other) == {1, 2, 9}


def test_a_replica_may_report_to_both(redis: str) -> None:
    with holder() as replica, routers(redis) as both:
        for router in both:
            assert replica.register(router).status_code == 200
        for keys in ([1, 2], [3, 4], [5, 6]):
            for router in both:
                assert replica.report(router, stored(*keys)).status_code == 202
                replica.seq -= 1
            replica.seq += 1
        wait_until(lambda: all(state(router) == {"r": ("up", 6)} for router in both))


def test_reports_that_were_lost_are_made_good_by_the_block_list(redis: str) -> None:
    with holder() as replica, routers(redis) as (one, other):
        replica.register(one)
        replica.report(one, stored(1))
        wait_until(lambda: state(other) == {"r": ("up", 1)})
        replica.lose(stored(2, 3, parent=1))
        replica.report(one, stored(4, parent=3))
        wait_until(lambda: state(one) == state(other) == {"r": ("up", 4)})


def test_a_resync_that_one_is_asked_for_puts_both_right(redis: str) -> None:
    with holder(1, 2, 3) as replica, routers(redis) as (one, other):
        replica.register(one)
        wait_until(lambda: state(one) == state(other) == {"r": ("up", 3)})
        replica.stored = (stored(1, 8),)
        answer = httpx.post(f"{other.control}/replicas/r/resync", timeout=WAIT_S, verify=False)
        assert answer.status_code == 202
        wait_until(lambda: believed(one) == believed(other) == {1, 8})


def test_reports_of_who_did_not_join_here_are_refused(redis: str) -> None:
    with holder() as replica, routers(redis) as (one, other):
        assert replica.report(one, stored(1)).json()["error"]["code"] == "unknown_replica"
        replica.register(one)
        wait_until(lambda: "r" in state(other))
        assert replica.report(other, stored(1)).json()["error"]["code"] == "unknown_replica"


def test_a_farewell_is_heard_by_both(redis: str) -> None:
    with holder() as replica, routers(redis) as (one, other):
        replica.register(one)
        wait_until(lambda: "r" in state(other))
        assert httpx.delete(f"{other.control}/replicas/r?epoch=99", timeout=WAIT_S, verify=False).status_code == 409
        assert httpx.delete(f"{one.control}/replicas/r?epoch=1", timeout=WAIT_S, verify=False).status_code == 204
        assert state(one) == {}
        wait_until(lambda: state(other) == {})
        assert httpx.delete(f"{one.control}/replicas/r?epoch=1", timeout=WAIT_S, verify=False).status_code == 404


def test_a_new_incarnation_replaces_the_old_one_everywhere(redis: str) -> None:
    with holder(1, 2, 3) as old, holder(8, epoch=2) as new, routers(redis) as (one, other):
        old.register(one)
        wait_until(lambda: state(other) == {"r": ("up", 3)})
        assert new.register(other).status_code == 200
        wait_until(lambda: state(one) == state(other) == {"r": ("up", 1)})
        assert {each["url"] for each in fleet(one)} == {new.url}
        assert old.register(one).json()["error"]["code"] == "superseded"
        assert old.report(one, stored(4, parent=3)).json()["error"]["code"] == "unknown_replica"


def test_a_name_of_the_configuration_stays_where_it_is(redis: str, caplog: pytest.LogCaptureFixture) -> None:
    with holder(name="taken") as configured, holder(name="taken") as joining, routers(redis, 1) as (one,):
        with running_router(redis=redis, replicas=(ReplicaConfig(configured.url, "taken"),)) as other:
            assert joining.register(one).status_code == 200
            wait_until(lambda: any("cannot join this router" in record.message for record in caplog.records))
            assert [each["url"] for each in fleet(other)] == [configured.url]
            assert joining.register(other).json()["error"]["code"] == "name_taken"


def test_a_booking_at_one_counts_at_both(redis: str) -> None:
    def never_answer(peer: Peer, head: bytes, body: bytes) -> None:
        peer.closed_by_router()

    def waiting(router: RunningRouter) -> list[int]:
        return [each["waiting"] for each in fleet(router)]

    with (
        upstream(never_answer) as server,
        routers(redis, replicas=(ReplicaConfig(server.url, "busy"),)) as (one, other),
    ):
        wait_until(lambda: standing(one)["peers"] == standing(other)["peers"] == 1)
        assert metric(one, "radixgate_peers") == 1
        with Client(one.port) as client:
            client.post(chat())
            wait_until(lambda: waiting(one) == waiting(other) == [1])
        wait_until(lambda: waiting(one) == waiting(other) == [0])


def test_where_one_sent_a_prompt_the_other_sends_the_next_like_it(redis: str) -> None:
    with holder(name="a") as a, holder(name="b") as b, routers(redis) as (one, other):
        for replica in (a, b):
            replica.register(one)
        wait_until(lambda: state(one) == state(other) == {"a": ("up", 0), "b": ("up", 0)})
        wait_until(lambda: standing(one)["peers"] == standing(other)["peers"] == 1)
        numbers = count()

        def follows() -> bool:
            question = chat(f"{next(numbers)} is a number that begins a long question " * 20)
            for router in (one, other):
                httpx.post(router.url + "/v1/chat/completions", json=question, timeout=WAIT_S, verify=False)
            first, second = receipts(one)[0], receipts(other)[0]
            return bool(max(second["overlap_tokens"]) > 0 and second["chosen"] == first["chosen"])

        wait_until(follows)  # the news takes a moment; the next question may be slower than that


def test_without_redis_both_go_on_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer() as server, holder(1, 2, 3) as replica, routers(server.url) as both:
        one, other = both
        replica.register(one)
        wait_until(lambda: state(one) == state(other) == {"r": ("up", 3)})
        assert metric(one, "radixgate_redis_up") == 1
        server.kill()
        wait_until(lambda: standing(one)["state"] == standing(other)["state"] == "away")
        assert metric(one, "radixgate_redis_up") == 0
        assert httpx.get(one.control + "/healthz/ready", timeout=WAIT_S, verify=False).status_code == 200
        assert answers_chats(one)
        assert answers_chats(other)
        assert replica.report(one, stored(4, parent=3)).status_code == 202  # it waits here
        assert replica.register(one).json() == {"lease_s": 10.0}
        assert state(other) == {"r": ("up", 3)}
        server.start()  # and it has forgotten everything
        wait_until(lambda: is_current(one) and is_current(other))
        wait_until(lambda: state(one) == state(other) == {"r": ("up", 4)})
        outages = [record for record in caplog.records if "no Redis at" in record.message]
        assert len(outages) == 2  # once in each router


def test_a_replica_that_restarts_while_redis_is_away_is_new_to_those_it_tells() -> None:
    with (
        RedisServer() as server,
        holder(1, 2, 3) as old,
        holder(7, epoch=2) as new,
        routers(server.url) as (one, other),
    ):
        old.register(one)
        wait_until(lambda: state(one) == state(other) == {"r": ("up", 3)})
        server.kill()
        assert new.register(one).json() == {"lease_s": 10.0}
        wait_until(lambda: state(one) == {"r": ("up", 0)})
        assert [each["url"] for each in fleet(one)] == [new.url]
        server.start()
        wait_until(lambda: state(one) == state(other) == {"r": ("up", 1)})
        assert [each["url"] for each in fleet(other)] == [new.url]


def test_members_of_a_wiped_redis_stay_and_are_known_again(server: RedisServer, redis: str) -> None:
    with holder(1, 2, 3) as replica, routers(redis) as (one, other):
        replica.register(one, lease_s=3.0)
        wait_until(lambda: state(one) == state(other) == {"r": ("up", 3)})
        resyncs = metric(other, "radixgate_mirror_resyncs_total")
        with admin(server) as client:
            client.flushall()
        seen = set()

        def known_again() -> bool:
            seen.add(tuple(state(other).items()))
            with admin(server) as client:
                back = bool(client.keys(f"*{redis.rpartition('=')[2]}*:replica:r"))
            return back and metric(other, "radixgate_mirror_resyncs_total") > resyncs and is_current(other)

        wait_until(known_again)
        wait_until(lambda: state(one) == state(other) == {"r": ("up", 3)})
        assert seen == {(("r", ("up", 3)),)}


def test_a_restarted_router_learns_everything_from_redis(redis: str) -> None:
    with holder(1, 2, 3) as replica, routers(redis, 1) as (one,):
        replica.register(one)
        replica.report(one, stored(4, parent=3))
        wait_until(lambda: state(one) == {"r": ("up", 4)})
        with routers(redis, 1) as (fresh,):
            wait_until(lambda: state(fresh) == {"r": ("up", 4)})
            assert believed(fresh) == {1, 2, 3, 4}


def test_a_router_that_starts_without_redis_serves_who_joins_it() -> None:
    with RedisServer() as server, holder(1, 2, 3) as replica:
        server.kill()
        with routers(server.url, 1) as (router,):
            wait_until(lambda: standing(router)["state"] == "away")
            assert replica.register(router).json() == {"lease_s": 10.0}
            wait_until(lambda: state(router) == {"r": ("up", 0)})
            assert [each["reports"] for each in fleet(router)] == ["none"]
            assert answers_chats(router)
            server.start()
            wait_until(lambda: state(router) == {"r": ("up", 3)})
            assert [each["reports"] for each in fleet(router)] == ["trusted"]


def test_a_lease_that_runs_out_while_the_replica_lives_ends_its_membership_until_it_returns(redis: str) -> None:
    with holder(1, 2, 3) as replica, routers(redis) as (one, other):
        replica.register(one, lease_s=1.0)
        wait_until(lambda: state(one) == state(other) == {"r": ("up", 3)})
        wait_until(lambda: state(one) == state(other) == {})
        assert replica.report(one, stored(4, parent=3)).json()["error"]["code"] == "unknown_replica"
        replica.register(one, lease_s=1.0)
        wait_until(lambda: state(one) == state(other) == {"r": ("up", 4)})


def test_a_private_router_follows_the_fleet_and_believes_nobody(redis: str) -> None:
    with holder(1, 2, 3) as replica, routers(redis, 1) as (one,), routers(redis, 1, private=True) as (private,):
        replica.register(one)
        wait_until(lambda: state(one) == state(private) == {"r": ("up", 3)})
        assert [each["reports"] for each in fleet(private)] == ["ignored"]
        assert standing(one)["peers"] == 0


def test_a_member_of_the_tree_that_makes_no_sense_is_left_out(redis: str, caplog: pytest.LogCaptureFixture) -> None:
    async def register_nonsense() -> None:
        link = open_link(redis)
        await RedisTree(link).register(Registration("r", "ftp://nowhere", 1, ("m",), 16, 100))
        await link.close()

    with holder(1, name="sane") as replica, routers(redis, 1) as (router,):
        asyncio.run(register_nonsense())
        replica.register(router)
        wait_until(lambda: state(router) == {"sane": ("up", 1)})
        wait_until(lambda: standing(router)["members"] == 2)
        assert "replica r of the tree cannot join this router: 'ftp://nowhere' is not a replica URL" in caplog.text
        assert state(router) == {"sane": ("up", 1)}
