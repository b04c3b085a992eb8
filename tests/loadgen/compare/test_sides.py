"""What a user writes for a side."""

from __future__ import annotations

import pytest

from loadgen.compare.rounds import rotated
from loadgen.compare.sides import SideSpec, parse_side, parse_sides

COMMAND = "python3 -m router --port {port} {replicas}"


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("kv", SideSpec("kv", "policy", "kv")),
        ("again=kv", SideSpec("again", "policy", "kv")),
        ("http://u:p@host:8000/v1?a=b", SideSpec("host:8000", "url", "http://u:p@host:8000/v1?a=b")),
        ("mine=https://host", SideSpec("mine", "url", "https://host")),
        ("two=http://a:1,http://b:2", SideSpec("two", "url", "http://a:1,http://b:2")),
        (f"theirs=!{COMMAND}", SideSpec("theirs", "command", COMMAND)),
    ],
)
def test_each_form_is_understood(text: str, side: SideSpec) -> None:
    assert parse_side(text) == side


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (["kv"], "two sides or more"),
        (["kv", "kv"], "two sides are called 'kv'"),
        (["kv", "psychic"], "'psychic' is no side"),
        (["kv", "=kv"], "no name before"),
        (["kv", "x="], "is no side"),
        (["kv", "x=ftp://host"], "is no side"),
        (["kv", "http://"], "is no side"),
        (["kv", "x=http://[::1"], "is no side"),
        (["kv", "x=http://host,http://host:99999"], "is no side"),
        (["kv", "x=!"], "the command is empty"),
        (["kv", "x=!sh -c true"], r"needs \{port\}"),
        (["kv", "x=!no-such-program-anywhere {port}"], "no program"),
    ],
)
def test_what_is_none_is_refused_before_anything_runs(texts: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_sides(texts)


def test_only_servers_that_ran_already_are_not_fresh() -> None:
    sides = parse_sides(["kv", "http://h", f"theirs=!{COMMAND}"])
    assert [side.fresh for side in sides] == [True, False, True]


def test_the_order_rotates() -> None:
    sides = parse_sides(["a=kv", "b=kv", "c=kv"])
    orders = ["".join(side.name for side in rotated(sides, repetition)) for repetition in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]
