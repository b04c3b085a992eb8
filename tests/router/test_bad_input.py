"""Bad input gets a clear error in OpenAI's form and the right status, and leaves the connection in a sane state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.router.harness import Client, RunningRouter, chat, hello, running_router, upstream


@pytest.fixture(scope="module")
def router() -> Iterator[RunningRouter]:
    limits = {"max_body": 10_000, "max_head": 2_000, "read_timeout": 0.6, "idle_timeout": 1.0}
    with upstream(hello) as server, running_router(server.url, **limits) as running:
        yield running


@pytest.fixture
def client(router: RunningRouter) -> Iterator[Client]:
    with Client(router.port) as connection:
        yield connection


def refusal(client: Client) -> tuple[int, dict[str, Any], bool]:
    """Status, the error, and whether the router said that it closes."""
    status, headers, body = client.response()
    assert headers["content-type"] == "application/json"
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    return status, error, headers.get("connection") == "close"


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        (b"", 400, None, "JSON"),
        (b"{", 400, None, "JSON"),
        (b"[1]", 400, None, "object"),
        (b"\xff\xfe", 400, None, "JSON"),
        (b'{"x":' * 1500, 400, None, "JSON"),
        (b'{"messages":[]}', 400, "model", "model"),
        (b'{"model":7,"messages":[]}', 400, None, "model"),
        (b'{"model":"m"}', 400, "messages", "messages"),
        (b'{"model":"m","messages":"hi"}', 400, "messages", "messages"),
        (b'{"model":"m","messages":[],"max_tokens":"many"}', 400, None, "max_tokens"),
        (b'{"model":"nobody/serves-this","messages":[]}', 404, "model", "nobody/serves-this"),
    ],
)
def test_bodies_that_cannot_be_routed(client: Client, body: bytes, status: int, param: str | None, says: str) -> None:
    for _ in range(2):  # the connection stays in order: the same again, and then a good request
        client.post(body)
        got, error, closes = refusal(client)
        assert (got, error["param"], closes) == (status, param, False)
        assert says in error["message"]
    client.post(chat())
    assert client.response()[0] == 200


def test_a_completion_needs_a_prompt(client: Client) -> None:
    client.post({"model": "m"}, path="/v1/completions")
    assert refusal(client)[1]["param"] == "prompt"


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit(client: Client, declared: bool) -> None:
    if declared:
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 10001\r\n\r\n")
    else:
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(b"1000\r\n" + b"x" * 4096 + b"\r\n" + b"1800\r\n" + b"x" * 6144 + b"\r\n")
    status, error, closes = refusal(client)
    assert (status, error["code"], closes) == (413, "request_too_large", True)
    assert "--max-body" in error["message"]
    assert client.read_to_end() == b""


def test_a_refusal_reaches_a_client_that_is_still_sending(client: Client) -> None:
    client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 3000000\r\n\r\n")
    client.send(b"x" * 3_000_000)
    assert refusal(client)[0] == 413


@pytest.mark.parametrize("whole", [True, False])
def test_headers_over_the_limit(client: Client, whole: bool) -> None:
    client.send(b"GET / HTTP/1.1\r\nHost: t\r\nX: " + b"y" * 2000 + (b"\r\n\r\n" if whole else b""))
    status, error, closes = refusal(client)
    assert (status, closes) == (431, True)
    assert "--max-head" in error["message"]


@pytest.mark.parametrize(
    "wire",
    [
        b"GARBAGE\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello
        b"GET /\r\n\r\n",
        b"GET / HTTP/4.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http(client: Client, wire: bytes) -> None:
    client.send(wire)
    status, _, closes = refusal(client)
    assert (status, closes) == (400, True)
    assert client.read_to_end() == b""


def test_other_transfer_encodings_are_not_understood(client: Client) -> None:
    client.send(b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n")
    assert refusal(client)[0] == 501


def test_a_tunnel_is_refused(client: Client) -> None:
    client.send(b"CONNECT example.org:443 HTTP/1.1\r\nHost: t\r\n\r\n")
    assert refusal(client)[0] == 405


@pytest.mark.parametrize(
    "beginning",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"POST /v1/chat/completions HTTP/1.1\r\nHo",
    ],
)
def test_a_request_that_never_ends_is_given_up(client: Client, beginning: bytes) -> None:
    client.send(beginning)
    status, error, closes = refusal(client)
    assert (status, closes) == (408, True)
    assert "--read-timeout" in error["message"]


def test_a_connection_without_requests_is_closed_in_time(client: Client) -> None:
    client.post(chat())
    client.response()
    assert client.read_to_end() == b""


def test_good_requests_before_a_bad_one_are_answered_first(client: Client) -> None:
    client.post(chat())
    client.send(b"GARBAGE\r\n\r\n")
    assert client.response()[0] == 200
    assert refusal(client)[0] == 400
    assert client.read_to_end() == b""
