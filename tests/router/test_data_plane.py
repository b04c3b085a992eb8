"""HTTP/1.1 through the router, on real sockets: what a client sends arrives whole, what a replica answers comes back
as it is.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from tests.router.harness import (
    Client,
    Peer,
    RunningRouter,
    Upstream,
    chat,
    chunk,
    fleet,
    hello,
    receipts,
    running_router,
    upstream,
    wait_until,
)


def echo(peer: Peer, head: bytes, body: bytes) -> None:
    """Answers with what arrived."""
    peer.send_json({"head": head.decode("latin-1"), "body": body.decode("latin-1")})


@pytest.fixture
def replica() -> Iterator[Upstream]:
    with upstream(echo) as server:
        yield server


@pytest.fixture
def router(replica: Upstream) -> Iterator[RunningRouter]:
    with running_router(replica.url) as running:
        yield running


@pytest.fixture
def client(router: RunningRouter) -> Iterator[Client]:
    with Client(router.port) as connection:
        yield connection


def echoed(client: Client) -> tuple[list[str], str]:
    """The header lines and the body that arrived at the replica."""
    status, _, body = client.response()
    assert status == 200
    answer = json.loads(body)
    return answer["head"].rstrip("\r\n").split("\r\n"), answer["body"]


def test_a_request_arrives_unchanged_but_for_what_a_proxy_must_change(client: Client, replica: Upstream) -> None:
    body = b'{ "model": "m",\n "messages": [{"role":"user","content":"\\u00e9 hi"}], "odd_field": 1.50 }'
    client.post(body, extra="X-Custom: Kept As Is\r\nAuthorization: Bearer k\r\nConnection: X-Gone\r\nX-Gone: 1\r\n")
    lines, arrived = echoed(client)
    assert arrived == body.decode()
    assert lines[0] == "POST /v1/chat/completions HTTP/1.1"
    assert f"host: 127.0.0.1:{replica.port}" in lines
    assert "X-Custom: Kept As Is" in lines
    assert "Authorization: Bearer k" in lines
    assert "x-forwarded-for: 127.0.0.1" in lines
    assert not [line for line in lines if line.lower().startswith(("connection", "x-gone"))]


def test_a_request_id_is_kept_or_made_and_told(client: Client, router: RunningRouter) -> None:
    client.post(chat(), extra="X-Request-Id: mine-1\r\n")
    lines, _ = echoed(client)
    assert [line for line in lines if line.lower().startswith("x-request-id")] == ["X-Request-Id: mine-1"]
    client.post(chat())
    _, headers, body = client.response()
    assert f"x-request-id: {headers['x-request-id']}" in json.loads(body)["head"].split("\r\n")
    assert [receipt["request_id"] for receipt in receipts(router)] == [headers["x-request-id"], "mine-1"]


def test_forwarded_for_grows(client: Client) -> None:
    client.post(chat(), extra="X-Forwarded-For: 10.1.2.3\r\n")
    lines, _ = echoed(client)
    assert "x-forwarded-for: 10.1.2.3, 127.0.0.1" in lines


def test_a_chunked_request_arrives_whole_with_a_length(client: Client) -> None:
    body = json.dumps(chat("in pieces")).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
    message = head + b"".join(chunk(body[at : at + 7]) for at in range(0, len(body), 7)) + b"0\r\nX-T: 1\r\n\r\n"
    for at in range(0, len(message), 5):
        client.send(message[at : at + 5])
    lines, arrived = echoed(client)
    assert arrived == body.decode()
    assert f"content-length: {len(body)}" in [line.lower() for line in lines]
    assert not [line for line in lines if line.lower().startswith("transfer-encoding")]


def test_a_request_byte_by_byte(client: Client) -> None:
    body = json.dumps(chat("slowly")).encode()
    head = b"\r\nPOST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % len(body)
    for at in range(len(head + body)):
        client.send((head + body)[at : at + 1])
    assert echoed(client)[1] == body.decode()


def test_expect_continue_is_met_before_the_body_comes(client: Client) -> None:
    body = json.dumps(chat()).encode()
    client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(body)
    lines, arrived = echoed(client)
    assert arrived == body.decode()
    assert not [line for line in lines if line.lower().startswith("expect")]


def test_an_unknown_expectation_is_refused(client: Client) -> None:
    client.post(chat(), extra="Expect: the-unexpected\r\n")
    assert client.response()[0] == 417


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    bodies = [json.dumps(chat(f"turn {number}")).encode() for number in range(20)]
    wire = b""
    for number, body in enumerate(bodies):
        if number % 5 == 4:
            wire += b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n"
        if number % 2:
            framing, payload = b"Transfer-Encoding: chunked", chunk(body) + b"0\r\n\r\n"
        else:
            framing, payload = b"Content-Length: %d" % len(body), body
        wire += b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\n" + framing + b"\r\n\r\n" + payload
    client.send(wire)
    for number, body in enumerate(bodies):
        if number % 5 == 4:
            assert client.response()[2] == b'{"replicas_up":1}'
        assert echoed(client)[1] == body.decode()


def test_a_thousand_pipelined_requests_do_not_nest(client: Client) -> None:
    client.post(chat())
    client.send(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n" * 1000)
    echoed(client)
    for _ in range(1000):
        assert client.response()[0] == 200


def test_http_10_gets_a_plain_body_and_the_end_of_the_connection() -> None:
    def stream(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send_stream_head()
        for text in ("one", "two", "[DONE]"):
            peer.send_event(text)
        peer.send(b"0\r\n\r\n")

    with upstream(stream) as server, running_router(server.url) as router, Client(router.port) as client:
        client.post(chat(stream=True), version="1.0")
        status, headers = client.response_head()
        assert status == 200
        assert "transfer-encoding" not in headers
        assert headers["connection"] == "close"
        assert client.read_to_end() == b"data: one\n\ndata: two\n\ndata: [DONE]\n\n"


def test_connection_close_is_honoured(client: Client) -> None:
    client.post(chat(), extra="Connection: close\r\n")
    _, headers, _ = client.response()
    assert headers["connection"] == "close"
    assert client.read_to_end() == b""


def test_an_upgrade_is_declined_by_answering(client: Client) -> None:
    client.send(b"GET /any HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    lines, _ = echoed(client)
    assert not [line for line in lines if line.lower().startswith("upgrade")]
    client.send(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")
    assert client.response()[0] == 200


def test_unknown_paths_go_to_a_replica_like_any_other(client: Client) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
        client.send(f"{method} /some/path?q=1 HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        assert echoed(client)[0][0] == f"{method} /some/path?q=1 HTTP/1.1"
    client.post(b"\x00binary\xff", path="/v1/audio/transcriptions")
    assert echoed(client)[1] == "\x00binary\xff"


def test_an_absolute_target_is_asked_by_its_path(client: Client) -> None:
    client.send(b"GET http://elsewhere/v1/thing?x=1 HTTP/1.1\r\nHost: t\r\n\r\n")
    assert echoed(client)[0][0] == "GET /v1/thing?x=1 HTTP/1.1"


def test_head_has_no_body_whatever_the_length_says() -> None:
    def head_only(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 12345\r\n\r\n")

    with upstream(head_only) as server, running_router(server.url) as router, Client(router.port) as client:
        for _ in range(2):
            client.send(b"HEAD /thing HTTP/1.1\r\nHost: t\r\n\r\n")
            status, headers = client.response_head()
            assert (status, headers["content-length"]) == (200, "12345")
        client.send(b"HEAD /v1/models HTTP/1.1\r\nHost: t\r\n\r\n")
        assert client.response_head()[0] == 200
        client.send(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")
        assert client.response()[0] == 200


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body_end_at_the_head(status: int) -> None:
    def empty(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send(f"HTTP/1.1 {status} X\r\n\r\n".encode())

    with upstream(empty) as server, running_router(server.url) as router, Client(router.port) as client:
        for _ in range(2):
            client.send(b"GET /thing HTTP/1.1\r\nHost: t\r\n\r\n")
            assert client.response_head()[0] == status


def test_interim_responses_are_skipped() -> None:
    def hints_first(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        hello(peer, head, body)

    with upstream(hints_first) as server, running_router(server.url) as router, Client(router.port) as client:
        client.post(chat())
        assert client.response()[2] == b'{"hello": true}'


def test_a_body_that_lasts_until_the_replica_closes() -> None:
    def until_close(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nall there ")
        peer.send(b"is")
        peer.sock.close()

    with upstream(until_close) as server, running_router(server.url) as router, Client(router.port) as client:
        client.post(chat())
        assert client.response_head()[1]["connection"] == "close"
        assert client.read_to_end() == b"all there is"


def test_hop_by_hop_lines_of_the_replica_stay_with_it() -> None:
    def closing(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send_json({"n": 1}, extra="Connection: close\r\nKeep-Alive: timeout=5\r\nX-Kept: yes\r\n")
        peer.sock.close()

    with upstream(closing) as server, running_router(server.url) as router, Client(router.port) as client:
        for _ in range(3):  # the client's connection lives on although the replica's does not
            client.post(chat())
            _, headers, _ = client.response()
            assert headers["x-kept"] == "yes"
            assert "connection" not in headers
            assert "keep-alive" not in headers


def test_large_bodies_both_ways(client: Client) -> None:
    text = "x" * (8 << 20)
    client.post(chat(text))
    assert json.loads(echoed(client)[1])["messages"][0]["content"] == text


def test_connections_to_a_replica_are_kept_and_used_again() -> None:
    connections = []

    def count(peer: Peer, head: bytes, body: bytes) -> None:
        if peer.sock not in connections:
            connections.append(peer.sock)
        hello(peer, head, body)

    with upstream(count) as server, running_router(server.url) as router, Client(router.port) as client:
        for _ in range(20):
            client.post(chat())
            client.response()
    assert len(connections) == 1


def test_stream_chunks_are_relayed_without_waiting_for_the_next() -> None:
    seen = threading.Semaphore(0)

    def one_at_a_time(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send_stream_head()
        for number in range(5):
            peer.send_event(str(number))
            assert seen.acquire(timeout=10)  # the next chunk comes only once the client has this one
        peer.send(b"0\r\n\r\n")

    with upstream(one_at_a_time) as server, running_router(server.url) as router, Client(router.port) as client:
        client.post(chat(stream=True))
        client.response_head()
        for number in range(5):
            assert client.read_until(b"\n\n\r\n").endswith(f"data: {number}\n\n\r\n".encode())
            seen.release()
        assert client.read_exactly(5) == b"0\r\n\r\n"


def test_a_client_that_reads_slowly_slows_the_replica_down() -> None:
    total = 64 << 20
    sent = 0
    blocked = threading.Event()

    def flood(peer: Peer, head: bytes, body: bytes) -> None:
        nonlocal sent
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        peer.sock.settimeout(1.0)
        block = b"x" * (1 << 16)
        while sent < total:
            try:
                sent += peer.sock.send(block[: total - sent])
            except TimeoutError:
                blocked.set()  # the router has stopped reading
                peer.sock.settimeout(10)

    with upstream(flood) as server, running_router(server.url) as router, Client(router.port) as client:
        client.post(chat())
        client.response_head()
        assert blocked.wait(10)
        assert sent < total / 2  # kernel buffers and the router's own, not the body
        received = 0
        while received < total:
            received += len(client.read_exactly(min(1 << 20, total - received)))


def test_a_client_that_leaves_takes_its_request_along() -> None:
    gone = threading.Event()

    def endless(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send_stream_head()
        peer.send_event("first")
        if peer.closed_by_router():
            gone.set()

    with upstream(endless) as server, running_router(server.url) as router:
        with Client(router.port) as client:
            client.post(chat(stream=True))
            client.read_until(b"first")
        assert gone.wait(10)
        wait_until(lambda: receipts(router)[0].get("outcome") == "client_left")
        assert fleet(router)[0]["waiting"] == fleet(router)[0]["decoding"] == 0


def test_a_client_that_leaves_before_the_first_byte_takes_its_request_along() -> None:
    gone = threading.Event()

    def silent(peer: Peer, head: bytes, body: bytes) -> None:
        if peer.closed_by_router():
            gone.set()

    with upstream(silent) as server, running_router(server.url) as router:
        with Client(router.port) as client:
            client.post(chat())
            server.requests.get(timeout=10)
        assert gone.wait(10)
        wait_until(lambda: fleet(router)[0]["waiting"] == 0)
