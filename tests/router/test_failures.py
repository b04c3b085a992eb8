"""Replicas that die, stall or talk nonsense: what can be saved is, what cannot ends cleanly, and nobody waits for
ever.
"""

from __future__ import annotations

import json
import socket

import pytest

from tests.router.harness import (
    Client,
    Peer,
    chat,
    chunk,
    fleet,
    hello,
    receipts,
    running_router,
    upstream,
    wait_until,
)


def dies(peer: Peer, head: bytes, body: bytes) -> None:
    """Takes the request and dies without a byte."""
    peer.kill()


def busy(peer: Peer, head: bytes, body: bytes) -> None:
    peer.send_json({"error": {"message": "draining"}}, status=503)


def error_of(body: bytes) -> dict[str, str]:
    error: dict[str, str] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("failing", [dies, busy])
def test_a_request_without_a_byte_yet_is_tried_elsewhere(failing: object) -> None:
    with upstream(dies if failing is dies else busy) as bad, upstream(hello) as good:
        with running_router(bad.url, good.url, policy="round_robin") as router, Client(router.port) as client:
            for _ in range(6):
                client.post(chat())
                status, headers, _ = client.response()
                assert (status, headers["x-radixgate-replica"]) == (200, f"127.0.0.1:{good.port}")
            assert {receipt.get("attempts", 1) for receipt in receipts(router)} == {1, 2}
            assert all(replica["waiting"] == replica["decoding"] == 0 for replica in fleet(router))


def test_every_replica_failing_is_told_with_the_reason() -> None:
    with upstream(dies) as one, upstream(dies) as two:
        with running_router(one.url, two.url) as router, Client(router.port) as client:
            client.post(chat())
            status, headers, body = client.response()
            assert status == 503
            assert headers["retry-after"]
            assert error_of(body)["code"] == "no_replica_available"


def test_a_busy_answer_is_passed_on_when_nobody_else_is_there() -> None:
    with upstream(busy) as only, running_router(only.url) as router, Client(router.port) as client:
        client.post(chat())
        assert client.response()[0] == 503


def test_a_stale_kept_connection_is_not_held_against_the_replica() -> None:
    served: list[socket.socket] = []

    def closes_after_each(peer: Peer, head: bytes, body: bytes) -> None:
        if peer.sock in served:
            peer.kill()  # the second request on a connection finds it closed
            return
        served.append(peer.sock)
        hello(peer, head, body)

    with upstream(closes_after_each) as server, running_router(server.url) as router, Client(router.port) as client:
        for _ in range(4):
            client.post(chat())
            assert client.response()[0] == 200


def test_what_is_not_safe_to_repeat_is_not_repeated() -> None:
    with upstream(dies) as bad, running_router(bad.url) as router, Client(router.port) as client:
        client.post(b"x", path="/v1/files")
        status, _, body = client.response()
        assert status == 502
        assert error_of(body)["code"] == "replica_failed"
        assert bad.requests.qsize() == 1


def test_a_stream_whose_replica_dies_ends_with_a_clean_error_event() -> None:
    def dies_midway(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send_stream_head()
        peer.send_event("first")
        cut = chunk(b"data: second that never becomes whole\n\n")
        peer.send(cut[: len(cut) // 2])
        peer.kill()

    with upstream(dies_midway) as server, running_router(server.url) as router, Client(router.port) as client:
        client.post(chat(stream=True))
        status, _, body = client.response()  # the chunks are well-formed to the last
        assert status == 200
        events = [event for event in body.decode().split("\n\n") if event]
        assert events[0] == "data: first"
        assert error_of(events[1].removeprefix("data: ").encode())["code"] == "replica_lost"
        assert events[2:] == ["data: [DONE]"]
        client.send(b"GET /v1/models HTTP/1.1\r\nHost: t\r\n\r\n")  # and the connection is still good
        assert client.response()[0] in (200, 503)
        assert receipts(router)[0]["outcome"] == "replica_lost"


def test_a_body_cut_short_is_never_made_to_look_whole() -> None:
    def cut_short(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
        peer.kill()

    with upstream(cut_short) as server, running_router(server.url) as router, Client(router.port) as client:
        client.post(chat())
        client.response_head()
        with pytest.raises((EOFError, ConnectionResetError)):
            client.read_exactly(100)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: ten\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
    ],
)
def test_a_malformed_response_is_the_replicas_fault(nonsense: bytes) -> None:
    def speak(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send(nonsense)

    with upstream(speak) as server, running_router(server.url) as router, Client(router.port) as client:
        client.post(b"{}", path="/v1/files")
        status, _, body = client.response()
        assert status == 502
        assert "malformed" in error_of(body)["message"]
        client.send(b"GET /v1/models HTTP/1.1\r\nHost: t\r\n\r\n")
        assert client.response()[0] == 200


def test_bytes_past_the_end_of_a_response_never_reach_the_next_client() -> None:
    def too_much(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")

    with upstream(too_much) as server, running_router(server.url) as router, Client(router.port) as client:
        for _ in range(3):
            client.post(chat())
            assert client.response()[2] == b"ok"


def test_a_silent_replica_is_given_up_after_the_response_timeout() -> None:
    def silent(peer: Peer, head: bytes, body: bytes) -> None:
        peer.closed_by_router()

    with upstream(silent) as server:
        with running_router(server.url, response_timeout=0.5) as router, Client(router.port) as client:
            client.post(chat())
            status, _, body = client.response()
            assert status == 504
            assert "--response-timeout" in error_of(body)["message"]


def test_a_stream_that_stalls_is_ended_with_an_error_event() -> None:
    def stalls(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send_stream_head()
        peer.send_event("first")
        peer.closed_by_router()

    with upstream(stalls) as server:
        with running_router(server.url, response_timeout=0.5) as router, Client(router.port) as client:
            client.post(chat(stream=True))
            _, _, body = client.response()
            assert b"response_timeout" in body


def test_no_replica_at_all() -> None:
    with running_router() as router, Client(router.port) as client:
        client.post(chat())
        status, headers, body = client.response()
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        assert error_of(body)["code"] == "no_replica_available"
        client.send(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")
        assert client.response()[0] == 503


def test_a_replica_that_goes_leaves_and_comes_back() -> None:
    with upstream(hello) as stays, upstream(hello) as goes:
        with running_router(stays.url, goes.url, health_interval=0.05) as router, Client(router.port) as client:
            goes.close()
            wait_until(lambda: fleet(router)[1]["state"] == "down")
            for _ in range(4):
                client.post(chat())
                assert client.response()[0] == 200
            with upstream(hello, port=goes.port):
                wait_until(lambda: fleet(router)[1]["state"] == "up")
