"""`radixgate audit` finds what is wrong, only that, and says what it could not see; `--repair` puts it right."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner, Result

from loadgen.processes import Children, free_ports
from radix.events import BlockRemoved, pack_keys
from router.audit import Comparison, Look
from router.audit_cli import audit
from router.config import ReplicaConfig
from tests.redis_server import RedisServer, admin
from tests.router.harness import WAIT_S, Peer, RunningRouter, hello, running_router, upstream, wait_until
from tests.router.test_joins import Member, member, state, stored

RADIXGATE = ["-P", "-m", "router.main"]
NOWHERE = "http://127.0.0.1:1"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(audit, arguments, catch_exceptions=False)


def audited(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON."""
    done = run("--json", *arguments)
    document: dict[str, Any] = msgspec.json.decode(done.stdout)
    assert document["exit_code"] == done.exit_code
    return done.exit_code, document


# What counts.


def look(*keys: int) -> Look:
    return Look(frozenset(keys))


def test_what_moves_is_no_difference_and_what_stays_wrong_is() -> None:
    comparison = Comparison(rounds=3)
    for held, believed in ((look(1, 2, 3, 10), look(1, 2, 4, 11)), (look(1, 3, 12), look(1, 4, 13, 12))):
        comparison.take(held, believed)
        assert not comparison.settled
    comparison.take(look(1, 3, 14), look(1, 4, 15))
    assert comparison.settled
    found = comparison.report()
    assert (found.blocks, found.false_positives, found.false_negatives) == (3, 1, 1)
    assert found.examples == (f"{4:016x}", f"{3:016x}")


def test_one_look_without_a_difference_is_enough() -> None:
    comparison = Comparison(rounds=3)
    comparison.take(look(1, 2), look(1))
    comparison.take(look(1, 2), look(1, 2))
    assert comparison.settled
    assert comparison.report().differences == 0


def test_a_look_in_vain_makes_the_count_begin_again_and_too_many_end_it() -> None:
    comparison = Comparison(rounds=2)
    comparison.take(look(1), look())
    comparison.take(Look(problem="away"), look())
    comparison.take(look(1), look())
    assert not comparison.settled
    comparison.take(look(1), Look(problem="away"))
    assert comparison.settled
    assert comparison.report().problem == "away"
    assert comparison.report().false_negatives is None


# A router by itself, and replicas that do as the test says.


@pytest.fixture
def router() -> Iterator[RunningRouter]:
    with running_router(health_interval=0.1) as running:
        yield running


@contextmanager
def joined(router: RunningRouter, *keys: int, name: str = "r") -> Iterator[Member]:
    """A replica that holds `keys`, and has said so."""
    with member(name) as replica:
        replica.stored = (stored(*keys),)
        replica.register(router)
        wait_until(lambda: state(router).get(name) == ("up", len(keys)))
        yield replica


def test_a_replica_that_does_not_hold_what_it_reported(router: RunningRouter) -> None:
    with joined(router, 1, 2, 3, 4) as replica, joined(router, 7, name="honest"):
        replica.stored = (stored(1, 2, 5),)
        code, document = audited("--router", router.control, "--rounds", "2")
        assert code == 1
        honest, wrong = document["audit"]["replicas"]
        assert (honest["name"], honest["looks"]) == ("honest", 1)
        assert (wrong["name"], wrong["blocks"], wrong["looks"]) == ("r", 3, 2)
        found = wrong["places"][router.control]
        assert (found["blocks"], found["false_positives"], found["false_negatives"]) == (4, 2, 1)
        assert found["examples"] == [f"{key:016x}" for key in (3, 4, 5)]
        assert document["audit"]["differences"] == 3
        assert document["audit"]["complete"]
        told = run("--router", router.control, "--rounds", "1")
        assert told.exit_code == 1
        assert "3 differences at r" in told.stdout


def test_a_router_that_was_wrong_is_asked_to_fetch_the_block_list(router: RunningRouter) -> None:
    with joined(router, 1, 2, 3) as replica:
        replica.stored = (stored(1, 4),)
        _, document = audited("--router", router.control, "--repair", "--rounds", "1")
        assert document["audit"]["differences"] == 3
        assert document["repairs"] == [{"replica": "r", "place": router.control, "problem": ""}]
        wait_until(lambda: state(router) == {"r": ("up", 2)})
        assert audited("--router", router.control)[0] == 0


class Restless(Member):
    """Holds another block each time it is asked, and tells the router so only before the next time."""

    router: RunningRouter | None = None
    asked = 0

    def _tell(self, peer: Peer, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET /radixgate/blocks") and self.router is not None:
            if self.asked:
                self.report(self.router, BlockRemoved(pack_keys([99 + self.asked])), stored(100 + self.asked, parent=1))
            self.asked += 1
            self.stored = (stored(1, 100 + self.asked),)
        super()._tell(peer, head, body)


def test_a_replica_that_moves_while_one_looks(router: RunningRouter) -> None:
    replica = Restless("r")
    try:
        replica.stored = (stored(1, 100),)
        replica.register(router)
        wait_until(lambda: state(router) == {"r": ("up", 2)})
        replica.router = router
        code, document = audited("--router", router.control)
        assert code == 0
        assert document["audit"]["replicas"][0]["looks"] > 1, "there was a difference at first"
    finally:
        replica.close()


def test_another_replica_at_its_address(router: RunningRouter) -> None:
    with joined(router, 1) as replica:
        replica.name = "somebody else"
        told = run("--router", router.control, "--rounds", "2")
        assert told.exit_code == 2
        assert "answers another replica, 'somebody else'" in told.stdout


def test_another_incarnation_is_noted(router: RunningRouter) -> None:
    with joined(router, 1, 2) as replica:
        replica.epoch, replica.stored = 2, ()
        code, document = audited("--router", router.control, "--rounds", "1")
        assert code == 1
        found = document["audit"]["replicas"][0]["places"][router.control]
        assert found["note"] == "speaks of incarnation 1, the replica is incarnation 2"


def test_a_replica_that_does_not_answer_and_one_that_left(router: RunningRouter) -> None:
    with joined(router, 1) as replica, joined(router, 2, name="other"):
        replica.close()
        code, document = audited("--router", router.control, "--rounds", "2")
        assert code == 2
        gone, there = document["audit"]["replicas"][1], document["audit"]["replicas"][0]
        assert "connection refused" in gone["problem"]
        assert gone["blocks"] is None
        assert (there["problem"], there["places"][router.control]["false_positives"]) == ("", 0)
        told = run("--router", router.control, "--rounds", "1")
        assert f"cannot be reached at {replica.url}: connection refused" in told.stdout


def test_a_router_that_is_away_or_does_not_know_the_replica(router: RunningRouter) -> None:
    with running_router(health_interval=0.1) as stranger, joined(router, 1):
        code, document = audited("--router", router.control, "--router", NOWHERE, "--router", stranger.control)
        assert code == 2
        places = document["audit"]["replicas"][0]["places"]
        assert places[router.control]["false_negatives"] == 0
        assert places[NOWHERE]["problem"] == "the router is away"
        assert places[stranger.control]["problem"] == "not registered with this router"
        assert "connection refused" in document["audit"]["problems"][NOWHERE]
        told = run("--router", router.control, "--router", stranger.control, "--rounds", "1")
        assert f"r at {stranger.control}: not registered with this router" in told.stdout


def test_replicas_that_make_no_reports_are_left_alone(router: RunningRouter) -> None:
    with upstream(hello) as plain, running_router(replicas=(ReplicaConfig(plain.url),)) as plain_router:
        told = run("--router", plain_router.control)
        assert told.exit_code == 0
        assert "nothing was compared" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--router URL, --redis URL, or both"),
        (("--router", "10.0.0.1:9400"), "is not a URL such as"),
        (("--router", "http://x:99999"), "is not a URL such as"),
        (("--redis", "http://10.0.0.1"), "redis://"),
        (("--router", NOWHERE, "--rounds", "0"), "--rounds"),
    ],
)
def test_what_cannot_be_asked_for(arguments: tuple[str, ...], message: str) -> None:
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr


# Real processes.


@dataclass(frozen=True)
class Site:
    """A router and two replicas that hold something; with the URL of their Redis, if they have one."""

    url: str
    control: str
    redis: str = ""
    server: RedisServer | None = None

    def chat(self, text: str) -> None:
        body = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": text}]}
        answer = httpx.post(self.url + "/v1/chat/completions", json=body, timeout=WAIT_S)
        assert answer.status_code == 200, answer.text

    def fleet(self) -> dict[str, dict[str, Any]]:
        try:
            found = httpx.get(self.control + "/fleet", timeout=WAIT_S).json()["replicas"]
        except httpx.TransportError:
            return {}
        return {replica["name"]: replica for replica in found}


@contextmanager
def site(replica_flags: Callable[[str], list[str]], *router_flags: str) -> Iterator[Site]:
    data_port, control_port = free_ports(2)
    there = Site(f"http://127.0.0.1:{data_port}", f"http://127.0.0.1:{control_port}")
    listen = ["--listen", f"127.0.0.1:{data_port}", "--control", f"127.0.0.1:{control_port}"]
    with Children() as children:
        children.start("router", [*RADIXGATE, "serve", *listen, *router_flags])
        for name in ("r0", "r1"):
            flags = ["--name", name, "--served-model-name", "m", "--listen", "127.0.0.1:0", "--speedup", "100"]
            flags += ["--kv-blocks", "300", "--max-model-len", "2048", *replica_flags(there.control)]
            children.start(name, [*RADIXGATE, "replica", *flags])
        wait_until(lambda: [each["state"] for each in there.fleet().values()] == ["up", "up"])
        for number in range(12):
            there.chat(f"{number} is a number with a story to tell. " * 20)
        yield there


@pytest.fixture(scope="module")
def embedded() -> Iterator[Site]:
    with site(lambda control: ["--join", control]) as there:
        yield there


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    with RedisServer() as server:
        url = f"{server.url}?namespace=audited"
        with site(lambda control: ["--report", url], "--redis", url) as there:
            yield Site(there.url, there.control, url, server)


def test_a_fleet_at_rest_has_no_differences(embedded: Site) -> None:
    code, document = audited("--router", embedded.control)
    assert code == 0
    replicas = document["audit"]["replicas"]
    assert [replica["name"] for replica in replicas] == ["r0", "r1"]
    assert sum(replica["blocks"] for replica in replicas) > 100
    for replica in replicas:
        assert replica["places"][embedded.control]["blocks"] == replica["blocks"]


def test_a_fleet_at_work_has_no_differences(embedded: Site) -> None:
    """Its caches are too small for what is asked, so that blocks come and go all the time."""
    ended = threading.Event()
    answered: list[int] = []

    def work(number: int) -> None:
        while not ended.is_set():
            embedded.chat(f"{number} {len(answered)} is another number. " * 60)
            answered.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        while len(answered) < 60:
            assert audited("--router", embedded.control, "--rounds", "6")[0] == 0
    finally:
        ended.set()
        for thread in threads:
            thread.join(WAIT_S)


def test_the_command_is_part_of_radixgate_and_teaches() -> None:
    command = [sys.executable, *RADIXGATE, "audit", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for word in ("false positive", "false negative", "--repair", "Exit code", "radixgate audit --router"):
        assert word in told


# With Redis.


def damage(there: Site) -> None:
    """Takes nodes out of the tree, and gives others a twin that nobody holds."""
    assert there.server is not None
    with admin(there.server) as client:
        buckets = list(client.scan_iter(match="{radixgate:audited}:b:*", count=10_000))
        for bucket in buckets[:5]:
            client.delete(bucket)
        for bucket in buckets[5:8]:
            field, node = next(iter(client.hgetall(bucket).items()))
            client.hset(bucket, bytes([field[0] ^ 1]) + field[1:], node)


def test_a_shared_tree_at_rest_has_no_differences(shared: Site) -> None:
    code, document = audited("--redis", shared.redis, "--router", shared.control)
    assert code == 0
    assert document["audit"]["places"] == ["Redis", shared.control]
    for replica in document["audit"]["replicas"]:
        assert {place["blocks"] for place in replica["places"].values()} == {replica["blocks"]}


def test_a_damaged_tree_is_found_and_repaired(shared: Site) -> None:
    damage(shared)
    flags = ("--redis", shared.redis, "--router", shared.control, "--rounds", "2")
    code, document = audited(*flags)
    assert code == 1
    places = [replica["places"] for replica in document["audit"]["replicas"]]
    assert sum(place["Redis"]["false_positives"] for place in places) >= 3
    assert sum(place["Redis"]["false_negatives"] for place in places) >= 5
    assert all(place[shared.control]["false_positives"] == 0 for place in places), "the router was told of nothing"
    told = run(*flags, "--repair")
    assert told.exit_code == 0
    assert "After the repair" in told.stdout
    assert "Repaired: r" in told.stdout
    code, document = audited(*flags, "--repair")
    assert code == 0
    assert (document["repairs"], document["after"]) == ([], None), "there was nothing left to repair"


def test_redis_alone_can_be_audited(shared: Site) -> None:
    code, document = audited("--redis", shared.redis)
    assert code == 0
    assert document["audit"]["places"] == ["Redis"]


def test_a_redis_that_is_away_or_empty(shared: Site) -> None:
    told = run("--redis", "redis://:secret@127.0.0.1:1/0", "--router", shared.control, "--rounds", "1")
    assert told.exit_code == 2
    assert "no answer from redis://127.0.0.1:1/0" in told.stdout.replace(":***@", "")
    assert "secret" not in told.stdout
    code, document = audited("--redis", shared.redis + "-other", "--router", shared.control, "--rounds", "1")
    assert code == 2
    for replica in document["audit"]["replicas"]:
        assert replica["places"]["Redis"]["problem"] == "not registered in Redis"
