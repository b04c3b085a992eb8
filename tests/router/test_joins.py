"""Replicas that join, renew, report, leave, restart and vanish: the fleet and the index follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec
import pytest

from radix.chat import ChatTokenizer, token_files
from radix.events import BlockRemoved, BlockStored, EventBatch, Snapshot, decode_snapshot, encode, pack_keys
from replica import tokenizer
from router.config import ReplicaConfig
from tests.router.harness import (
    WAIT_S,
    Peer,
    RunningRouter,
    Upstream,
    chat,
    fleet,
    receipts,
    running_router,
    wait_until,
)


class Member(Upstream):
    """A replica as the router sees one: it answers with its block list, and the test registers and reports for it."""

    def __init__(self, name: str, epoch: int = 1) -> None:
        self.name = name
        self.epoch = epoch
        self.seq = 0
        self.stored: tuple[BlockStored, ...] = ()
        super().__init__(self._tell)

    def _tell(self, peer: Peer, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET /radixgate/blocks"):
            told = encode(Snapshot(self.name, self.epoch, self.seq, self.stored))
        elif head.startswith(b"GET /radixgate/tokenizer"):
            told = msgspec.msgpack.encode(token_files(tokenizer.directory()))
        else:
            told = b"{}"
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(told) + told)

    def register(self, router: RunningRouter, **changes: Any) -> httpx.Response:
        account = {
            "name": self.name,
            "url": self.url,
            "epoch": self.epoch,
            "models": ["m"],
            "block_size": 16,
            "capacity_blocks": 100,
            **changes,
        }
        return httpx.put(f"{router.control}/replicas/{account['name']}", json=account, timeout=WAIT_S, verify=False)

    def report(self, router: RunningRouter, *events: BlockStored | BlockRemoved) -> httpx.Response:
        batch = encode(EventBatch(self.name, self.epoch, self.seq, events))
        self.seq += 1
        return httpx.post(f"{router.control}/events", content=batch, timeout=WAIT_S, verify=False)


@contextmanager
def member(name: str = "r", epoch: int = 1) -> Iterator[Member]:
    server = Member(name, epoch)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def router() -> Iterator[RunningRouter]:
    with running_router(health_interval=0.1) as running:
        yield running


def state(router: RunningRouter) -> dict[str, tuple[str, int]]:
    """Each replica's state and reported blocks."""
    return {replica["name"]: (replica["state"], replica["reported_blocks"]) for replica in fleet(router)}


def stored(*keys: int, parent: int | None = None) -> BlockStored:
    return BlockStored(parent, pack_keys(keys))


def synced(router: RunningRouter, count: int = 1) -> bool:
    metrics = httpx.get(router.control + "/metrics", timeout=WAIT_S).text
    return f"radixgate_resyncs_total {count}.0" in metrics


def test_a_member_joins_with_the_blocks_it_has_and_reports_more(router: RunningRouter) -> None:
    with member() as replica:
        replica.seq, replica.stored = 7, (stored(1, 2, 3),)
        assert replica.register(router).json() == {"lease_s": 10.0}
        wait_until(lambda: state(router) == {"r": ("up", 3)})
        assert replica.report(router, stored(4, 5, parent=3)).status_code == 202
        assert state(router) == {"r": ("up", 5)}
        assert replica.report(router, BlockRemoved(pack_keys([5, 4]))).status_code == 202
        assert state(router) == {"r": ("up", 3)}


def test_a_lost_batch_is_repaired_from_the_block_list(router: RunningRouter) -> None:
    with member() as replica:
        replica.register(router)
        wait_until(lambda: synced(router))
        replica.report(router, stored(1))
        replica.seq += 1  # a batch with block 2 is lost on the way
        replica.stored = (stored(1, 2, 3),)
        replica.report(router, stored(3, parent=2))
        wait_until(lambda: state(router) == {"r": ("up", 3)})


def test_a_lease_that_is_not_renewed_runs_out(router: RunningRouter) -> None:
    with member() as replica:
        assert replica.register(router, lease_s=1.0).json() == {"lease_s": 1.0}
        wait_until(lambda: "r" in state(router))
        wait_until(lambda: state(router) == {})
        assert replica.report(router, stored(1)).json()["error"]["code"] == "unknown_replica"
        replica.register(router)
        wait_until(lambda: state(router) == {"r": ("up", 0)})


def test_a_restarted_member_replaces_its_older_incarnation_at_once(router: RunningRouter) -> None:
    with member(epoch=1) as old, member(epoch=2) as new:
        old.stored = (stored(1, 2, 3),)
        old.register(router)
        wait_until(lambda: state(router) == {"r": ("up", 3)})
        assert new.register(router).status_code == 200
        wait_until(lambda: state(router) == {"r": ("up", 0)})
        assert old.register(router).json()["error"]["code"] == "superseded"
        assert old.report(router, stored(9)).json()["error"]["code"] == "unknown_replica"


def test_a_dead_members_blocks_leave_at_once(router: RunningRouter) -> None:
    with member() as replica:
        replica.stored = (stored(1, 2),)
        replica.register(router)
        wait_until(lambda: state(router) == {"r": ("up", 2)})
        replica.close()
        wait_until(lambda: state(router) == {"r": ("down", 0)})


def test_a_clean_farewell(router: RunningRouter) -> None:
    with member() as replica:
        replica.register(router)
        wrong = httpx.delete(f"{router.control}/replicas/r?epoch=99", timeout=WAIT_S)
        assert wrong.json()["error"]["code"] == "superseded"
        assert httpx.delete(f"{router.control}/replicas/r", timeout=WAIT_S).status_code == 400
        assert httpx.delete(f"{router.control}/replicas/r?epoch=1", timeout=WAIT_S).status_code == 204
        assert state(router) == {}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"url": "ftp://x"}, 422),
        ({"url": "http://"}, 422),
        ({"url": "http://x:99999"}, 422),
        ({"block_size": 0}, 422),
        ({"block_size": "many"}, 400),
        ({"epoch": None}, 400),
    ],
)
def test_registrations_that_cannot_be_used(router: RunningRouter, changes: dict[str, Any], status: int) -> None:
    with member() as replica:
        answer = replica.register(router, **changes)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
        assert state(router) == {}


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff" * 100])
def test_reports_that_are_not_batches(router: RunningRouter, body: bytes) -> None:
    answer = httpx.post(f"{router.control}/events", content=body, timeout=WAIT_S)
    assert answer.status_code == 400
    assert "batch" in answer.json()["error"]["message"]


def test_a_name_of_the_configuration_cannot_be_taken() -> None:
    with member("configured") as replica:
        with running_router(replicas=(ReplicaConfig(replica.url, "configured"),)) as router:
            assert replica.register(router).json()["error"]["code"] == "name_taken"


def residency(router: RunningRouter, name: str) -> httpx.Response:
    return httpx.get(f"{router.control}/replicas/{name}/residency", timeout=WAIT_S)


def test_the_router_tells_what_it_believes_that_a_replica_holds() -> None:
    with member() as replica, member("silent") as silent:
        with running_router(replicas=(ReplicaConfig(silent.url, "silent"),), health_interval=0.1) as router:
            replica.seq, replica.stored = 7, (stored(1, 2, 3), stored(8, parent=2))
            replica.register(router)
            wait_until(lambda: state(router)["r"] == ("up", 4))
            replica.report(router, BlockRemoved(pack_keys([3])))
            held = decode_snapshot(residency(router, "r").content)
            assert (held.replica, held.epoch, held.seq) == ("r", 1, 8)
            assert {key for event in held.stored for key in event.keys} == {1, 2, 8}
            assert {replica["name"]: replica["reports"] for replica in fleet(router)} == {
                "r": "trusted",
                "silent": "none",
            }
            assert residency(router, "silent").json()["error"]["code"] == "no_reports"
            assert residency(router, "nobody").status_code == 404
            metrics = httpx.get(router.control + "/metrics", timeout=WAIT_S).text
            assert 'radixgate_replica_reports_trusted{replica="r"} 1.0' in metrics


def test_health_of_the_router_itself(router: RunningRouter) -> None:
    assert httpx.get(router.control + "/healthz/live", timeout=WAIT_S).status_code == 200
    assert httpx.get(router.control + "/healthz/ready", timeout=WAIT_S).status_code == 503
    with member() as replica:
        replica.register(router)
        wait_until(lambda: httpx.get(router.control + "/healthz/ready", timeout=WAIT_S).status_code == 200)
    assert httpx.get(router.control + "/no/such/path", timeout=WAIT_S).json()["error"]["message"]
    assert httpx.get(router.control + "/receipts?limit=x", timeout=WAIT_S).status_code == 400


def mode_of_a_chat(router: RunningRouter) -> str:
    answer = httpx.post(router.url + "/v1/chat/completions", json=chat(), timeout=WAIT_S)
    assert answer.status_code == 200
    mode: str = receipts(router)[0]["mode"]
    return mode


def test_a_tokenizer_that_is_not_on_this_machine_is_fetched_from_the_replica(router: RunningRouter) -> None:
    fingerprint = ChatTokenizer.load(tokenizer.directory()).fingerprint
    with member() as replica:
        replica.register(router, tokenizer="/nowhere/at/all", tokenizer_fingerprint=fingerprint)
        wait_until(lambda: state(router) == {"r": ("up", 0)})
        wait_until(lambda: mode_of_a_chat(router) == "exact")


def test_a_tokenizer_that_is_not_what_the_replica_named_is_not_used(router: RunningRouter) -> None:
    with member() as replica:
        replica.register(router, tokenizer=str(tokenizer.directory()), tokenizer_fingerprint="something else")
        wait_until(lambda: state(router) == {"r": ("up", 0)})
        wait_until(lambda: any(b"/radixgate/tokenizer" in head for head, _ in list(replica.requests.queue)))
        assert mode_of_a_chat(router) == "text"
