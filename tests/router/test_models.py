"""A model name finds its pool: exact name, then longest prefix, then replicas that serve anything."""

from __future__ import annotations

import pytest

from router.fleet import Address, Fleet, Replica
from router.outbox import Outbox
from router.upstream import ConnectionPool


def unused(flush: object) -> None:
    raise AssertionError("nothing is written here")


def fleet_of(**serving: tuple[str, ...] | None) -> Fleet:
    fleet = Fleet()
    for name, models in serving.items():
        replica = Replica(
            name,
            Address("http://127.0.0.1:1"),
            ConnectionPool("127.0.0.1", 1, None, Outbox(unused), connect_timeout_s=1),
        )
        replica.models = models
        fleet.add(replica)
        fleet.mark_up(replica)
    return fleet


def resolve(fleet: Fleet, model: str) -> tuple[str, ...] | None:
    pool = fleet.table.resolve(model)
    return None if pool is None else pool.names


def test_names_prefixes_adapters_and_anything() -> None:
    fleet = fleet_of(
        a=("qwen/", "llama"),
        b=("qwen/qwen3-8b",),
        c=("qwen/qwen3-", "llama"),
        d=None,
    )
    assert resolve(fleet, "qwen/qwen3-8b") == ("b",)
    assert resolve(fleet, "qwen/qwen2") == ("a",)
    assert resolve(fleet, "qwen/qwen3-8b:french") == ("b",)
    assert resolve(fleet, "llama") == ("a", "c")
    assert resolve(fleet, "llama:sql") == ("a", "c")
    assert resolve(fleet, "llama-70b") == ("d",)
    assert resolve(fleet, "") == ("d",)


def test_a_model_nobody_serves() -> None:
    fleet = fleet_of(a=("qwen/",))
    assert resolve(fleet, "qwen") is None
    for number in range(10_000):  # inventing names costs no memory without end
        assert resolve(fleet, f"invented-{number}") is None


def test_a_replica_that_is_down_keeps_its_models_but_takes_no_requests() -> None:
    fleet = fleet_of(a=("m",), b=("m",))
    (a, _) = fleet
    fleet.mark_down(a, "test")
    assert resolve(fleet, "m") == ("b",)
    fleet.mark_up(a)
    assert resolve(fleet, "m") == ("a", "b")
    fleet.remove(a, "test")
    assert resolve(fleet, "m") == ("b",)


def test_names_are_unique() -> None:
    fleet = fleet_of(a=None)
    with pytest.raises(ValueError, match="two replicas"):
        fleet.add(next(iter(fleet)))


@pytest.mark.parametrize(
    ("url", "authority", "base"),
    [
        ("http://h:8000", "h:8000", ""),
        ("https://h", "h", ""),
        ("http://h:8000/base/", "h:8000", "/base"),
        ("http://[::1]:8000", "[::1]:8000", ""),
    ],
)
def test_addresses(url: str, authority: str, base: str) -> None:
    address = Address(url)
    assert (address.authority, address.base_path) == (authority, base)


@pytest.mark.parametrize("url", ["h:8000", "ftp://h", "http://", "http://h:port", "http://u:p@h", "http://h/?q", ""])
def test_what_is_not_a_replica_url(url: str) -> None:
    with pytest.raises(ValueError, match=r"http://HOST:PORT|[Pp]ort"):
        Address(url)
