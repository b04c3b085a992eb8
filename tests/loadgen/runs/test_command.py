"""A command line of somebody else's: what is filled in, and what is refused before anything starts."""

from __future__ import annotations

import sys

import pytest

from loadgen.runs.command import BadCommand, filled_in

REPLICAS = ["http://127.0.0.1:1", "http://127.0.0.1:2"]


def fill(arguments: str) -> list[str]:
    program, *rest = filled_in(f"{sys.executable} {arguments}", 80, REPLICAS)
    assert program == sys.executable
    return rest


def test_addresses_take_the_places_of_their_names() -> None:
    assert fill("--port {port} --workers {replicas} -x") == ["--port", "80", "--workers", *REPLICAS, "-x"]
    assert fill("--listen=127.0.0.1:{port} --all={replicas,}") == [
        "--listen=127.0.0.1:80",
        "--all=http://127.0.0.1:1,http://127.0.0.1:2",
    ]
    assert fill("{port} {replicas:--replica}") == ["80", "--replica", REPLICAS[0], "--replica", REPLICAS[1]]


def test_every_other_free_port_is_another_one() -> None:
    _, one, other = fill("{port} {free_port} a:{free_port}")
    assert int(one) > 0
    assert other.startswith("a:")
    assert other != f"a:{one}"


def test_no_shell_reads_it() -> None:
    assert fill("{port} '$HOME; ls' \"a b\" *") == ["80", "$HOME; ls", "a b", "*"]
    assert fill('{port} \'{"json": {"a": 1}}\'') == ["80", '{"json": {"a": 1}}']


def test_a_program_is_found_in_the_path() -> None:
    assert filled_in("sh -c {port}", 80, REPLICAS)[0].endswith("/sh")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("", "empty"),
        ("sh 'a {port}", "cannot be split"),
        ("sh --port 80", "does not say where to listen"),
        ("no-such-router {port}", "no program 'no-such-router'"),
        ("sh {port} {workers}", "{workers} means nothing here"),
    ],
)
def test_what_cannot_be_run_is_refused(command: str, expected: str) -> None:
    with pytest.raises(BadCommand, match=expected):
        filled_in(command, 80, REPLICAS)
