"""Clients and replicas that try: nobody's bytes become somebody else's, and nobody's memory is ours to give away."""

from __future__ import annotations

import json
import socket
import threading
from urllib.parse import quote

import httpx
import pytest

from router.config import ReplicaConfig
from tests.router.harness import (
    WAIT_S,
    Client,
    Peer,
    Upstream,
    chat,
    chunk,
    fleet,
    hello,
    running_router,
    upstream,
    wait_until,
)


def test_a_length_hidden_behind_connection_smuggles_nothing() -> None:
    with upstream(hello) as server, running_router(server.url) as router, Client(router.port) as client:
        inner = b"POST /admin/delete HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        head = b"POST /v1/files HTTP/1.1\r\nHost: t\r\nConnection: content-length\r\nContent-Length: %d\r\n\r\n"
        client.send(head % len(inner) + inner)
        assert client.response()[0] == 200
        seen, body = server.requests.get(timeout=WAIT_S)
        assert seen.startswith(b"POST /v1/files")
        assert body == inner
        assert server.requests.empty()


@pytest.mark.parametrize(
    "wire",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
    ],
)
def test_ambiguous_requests_are_refused(wire: bytes) -> None:
    with upstream(hello) as server, running_router(server.url) as router, Client(router.port) as client:
        client.send(wire)
        assert client.response()[0] == 400
        assert server.requests.empty()


def test_what_an_idle_replica_says_never_reaches_a_client() -> None:
    spoken = threading.Event()

    def speaks_again(peer: Peer, head: bytes, body: bytes) -> None:
        hello(peer, head, body)
        if body == b"1":
            peer.send(b"HTTP/1.1 200 OK\r\nx-evil: 1\r\n")
            peer.closed_by_router()
            spoken.set()

    with upstream(speaks_again) as server, running_router(server.url) as router, Client(router.port) as client:
        client.post(b"1", path="/v1/chat/completions")  # refused by us; only to have the connection in use
        assert client.response()[0] == 400
        client.post(chat())
        assert client.response()[0] == 200
        client.send(b"GET /x HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\n\r\n1")
        client.response()
        assert spoken.wait(WAIT_S)
        client.post(chat())
        assert "x-evil" not in client.response()[1]


class Impatient(Upstream):
    """Answers a POST as soon as it has its head, and reads no further."""

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            peer = Peer(sock)
            head = peer.read_head()
            if head.startswith(b"POST"):
                peer.send_json({"error": "too large"}, status=413)
                peer.stop_reading()
            elif head:
                self._answer(peer, head, b"")
        self._sockets.discard(sock)


def test_an_early_answer_leaves_no_unread_body_before_the_next_request() -> None:
    server = Impatient(hello)
    try:
        with running_router(server.url) as router, Client(router.port) as client:
            for _ in range(2):
                client.post(chat("x" * 20_000_000))
                assert client.response()[0] == 413
    finally:
        server.close()


def test_a_slow_reader_of_a_last_answer_gets_all_of_it() -> None:
    size = 8 << 20

    def large(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)

    with upstream(large) as server, running_router(server.url) as router, Client(router.port, buffer=1 << 16) as client:
        client.post(chat(), extra="Connection: close\r\n")
        client.response_head()
        taken = 0
        while fleet(router)[0]["decoding"]:  # until all of the answer is the router's to deliver
            taken += len(client.read_exactly(1 << 15))
        threading.Event().wait(3.0)  # more than a closing connection may linger
        assert taken + len(client.read_to_end()) == size


def test_requests_that_are_not_repeatable_do_not_pile_up_connections() -> None:
    with upstream(hello) as server, running_router(server.url) as router, Client(router.port) as client:
        for _ in range(30):
            client.post(b"x", path="/v1/files")
            assert client.response()[0] == 200
        wait_until(lambda: len(server._sockets) <= 2)


def test_embeddings_share_kept_connections() -> None:
    with upstream(hello) as server, running_router(server.url) as router, Client(router.port) as client:
        for _ in range(30):
            client.post({"model": "m", "input": "x"}, path="/v1/embeddings")
            assert client.response()[0] == 200
        wait_until(lambda: len(server._sockets) <= 2)


def test_a_client_that_pipelines_and_never_reads_is_paused() -> None:
    with running_router() as router, socket.create_connection(("127.0.0.1", router.port)) as sock:
        sock.settimeout(1.0)
        sent = 0
        wire = b"GET /v1/models HTTP/1.1\r\nHost: t\r\n\r\n" * 1000
        try:
            while sent < 256 << 20:
                sent += sock.send(wire)
        except TimeoutError:
            pass  # the router has stopped reading
        assert sent < 64 << 20


@pytest.mark.parametrize(
    ("body", "param"),
    [(chat(model="m" * 600), "model"), (chat(cache_salt="s" * 2000), "cache_salt")],
)
def test_names_that_would_be_kept_have_a_limit(body: dict[str, object], param: str) -> None:
    with upstream(hello) as server, running_router(server.url) as router, Client(router.port) as client:
        client.post(body)
        status, _, answer = client.response()
        assert (status, json.loads(answer)["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[],"max_tokens":%s}' % (b"9" * 400),
        b'{"model":"m","messages":[],"max_tokens":-5}',
        b'{"model":"m","messages":[],"max_tokens":100.0}',
        b'{"model":"m","messages":[],"max_tokens":"5"}',
        b'{"model":"m","messages":[],"user":5,"session_id":{"a":1}}',
        b'{"model":"m","messages":[{"role":"user","content":"\\ud83d"}],"temperature":NaN}',
        b'{"model":"m","messages":[],"stream":null,"tools":null}',
    ],
)
def test_what_an_engine_may_judge_for_itself_reaches_it(body: bytes) -> None:
    with upstream(hello) as server, running_router(server.url) as router, Client(router.port) as client:
        client.post(body)
        assert client.response()[0] == 200
        assert server.requests.get(timeout=WAIT_S)[1] == body


@pytest.mark.parametrize("name", ["a\r\nset-cookie: x=1", "a b", "é", "", "x" * 300])
def test_a_joining_name_cannot_stand_for_a_header(name: str) -> None:
    account = {"name": name, "url": "http://127.0.0.1:1", "epoch": 1, "models": [], "block_size": 1}
    with running_router() as router:
        url = f"{router.control}/replicas/{quote(name, safe='')}"
        answer = httpx.put(url, json={**account, "capacity_blocks": 1}, timeout=WAIT_S)
        assert answer.status_code in (404, 405, 422)
        assert fleet(router) == []


def test_head_over_http_10_of_a_chunked_answer() -> None:
    def stream_head(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")

    with upstream(stream_head) as server, running_router(server.url) as router, Client(router.port) as client:
        client.send(b"HEAD /x HTTP/1.0\r\nHost: t\r\n\r\n")
        assert client.response_head()[0] == 200
        assert client.read_to_end() == b""


class Flaky(Upstream):
    """Stops listing its models once `healthy` is cleared."""

    def __init__(self) -> None:
        self.healthy = threading.Event()
        self.healthy.set()
        super().__init__(hello, models=("a",))

    def _answer(self, peer: Peer, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET /v1/models") and not self.healthy.is_set():
            self.requests.put((head, body))
            peer.send_json({"error": "busy"}, status=500)
        else:
            super()._answer(peer, head, body)


def test_a_probe_that_fails_once_does_not_change_what_a_replica_serves() -> None:
    server = Flaky()
    try:
        with running_router(server.url, health_interval=0.05) as router, Client(router.port) as client:
            server.healthy.clear()
            for _ in range(2):  # the second is asked only when the first has had its effect
                server.requests.get(timeout=WAIT_S)
            client.post(chat(model="zzz"))
            assert client.response()[0] == 404
            client.post(chat(model="a"))
            assert client.response()[0] == 200
    finally:
        server.close()


def test_a_configured_name_is_listed_and_the_replicas_own_is_not() -> None:
    with upstream(hello, models=("real", "with space")) as server:
        with running_router(server.url) as router:
            models = httpx.get(router.url + "/v1/models", timeout=WAIT_S).json()["data"]
            assert [model["id"] for model in models] == ["real", "with space"]
            assert httpx.get(router.url + "/v1/models/with%20space", timeout=WAIT_S).status_code == 200
        with running_router(replicas=(ReplicaConfig(server.url, models=("alias", "qwen/")),)) as router:
            models = httpx.get(router.url + "/v1/models", timeout=WAIT_S).json()["data"]
            assert [model["id"] for model in models] == ["alias"]


def test_expect_behind_an_unanswered_request_is_met_in_its_turn() -> None:
    go = threading.Event()

    def patient(peer: Peer, head: bytes, body: bytes) -> None:
        assert go.wait(WAIT_S)
        hello(peer, head, body)

    with upstream(patient) as server, running_router(server.url) as router, Client(router.port) as client:
        body = json.dumps(chat()).encode()
        client.post(chat())
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\n")
        client.send(b"Content-Length: %d\r\n\r\n" % len(body))
        server.requests.get(timeout=WAIT_S)
        go.set()
        assert client.response()[0] == 200
        assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert client.response()[0] == 200


def test_a_503_of_the_only_replica_of_a_model_is_its_own() -> None:
    def busy(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send_json({"error": {"message": "draining"}}, status=503, extra="Retry-After: 30\r\n")

    with upstream(busy, models=("m",)) as only, upstream(hello, models=("other",)) as other:
        with running_router(only.url, other.url) as router, Client(router.port) as client:
            client.post(chat())
            status, headers, body = client.response()
            assert (status, headers["retry-after"]) == (503, "30")
            assert b"draining" in body


def test_a_stream_to_many_stalled_clients_is_held_back_at_the_replica() -> None:
    sent = threading.Semaphore(0)

    def flood(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send_stream_head()
        peer.sock.settimeout(1.0)
        piece = chunk(b"data: " + b"x" * 16_000 + b"\n\n")
        count = 0
        try:
            while count < 4000:
                peer.send(piece)
                count += 1
        except TimeoutError:
            sent.release()

    with upstream(flood) as server, running_router(server.url) as router:
        clients = [Client(router.port) for _ in range(4)]
        try:
            for client in clients:
                client.post(chat(stream=True))
            assert all(sent.acquire(timeout=WAIT_S) for _ in clients)
        finally:
            for client in clients:
                client.sock.close()


def test_a_chunk_that_comes_in_two_parts_reaches_an_http_10_client_once() -> None:
    halfway = threading.Event()

    def in_two(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send_stream_head()
        event = chunk(b"data: 0123456789\n\n")
        peer.send(event[:12])
        assert halfway.wait(WAIT_S)
        peer.send(event[12:] + b"0\r\n\r\n")

    with upstream(in_two) as server, running_router(server.url) as router, Client(router.port) as client:
        client.post(chat(stream=True), version="1.0")
        client.response_head()
        halfway.set()
        assert client.read_to_end() == b"data: 0123456789\n\n"


def test_what_follows_a_refused_head_is_never_read_as_requests() -> None:
    go = threading.Event()

    def patient(peer: Peer, head: bytes, body: bytes) -> None:
        assert go.wait(WAIT_S)
        hello(peer, head, body)

    with upstream(patient) as server, running_router(server.url) as router, Client(router.port) as client:
        client.send(b"GET /a HTTP/1.1\r\nHost: t\r\n\r\nGET /b HTTP/1.1\r\nHost: t\r\n\r\n")
        client.send(b"POST /c HTTP/1.1\r\nHost: t\r\nContent-Length: 999999999\r\n\r\n")
        client.send(b"DELETE /smuggled HTTP/1.1\r\nHost: t\r\n\r\n")
        server.requests.get(timeout=WAIT_S)
        go.set()
        assert [client.response()[0] for _ in range(3)] == [200, 200, 413]
        assert client.read_to_end() == b""
        assert server.requests.get(timeout=WAIT_S)[0].startswith(b"GET /b")
        assert server.requests.empty()


def test_an_idle_connection_has_all_its_time_for_the_next_head() -> None:
    with upstream(hello) as server:
        with running_router(server.url, read_timeout=2.0, idle_timeout=30.0) as router, Client(router.port) as client:
            client.post(chat())
            client.response()
            threading.Event().wait(2.5)  # idle for longer than a head may take
            client.send(b"GET /health HTTP/1.1\r\nHo")
            threading.Event().wait(0.7)  # a sweep passes
            client.send(b"st: t\r\n\r\n")
            assert client.response()[0] == 200


def test_a_client_that_takes_nothing_of_its_last_answer_is_let_go() -> None:
    def large(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 8000000\r\n\r\n" + b"x" * 8_000_000)

    with upstream(large) as server, running_router(server.url, response_timeout=1.0, read_timeout=1.0) as router:
        with Client(router.port, buffer=1 << 16) as client:
            client.post(chat(), extra="Connection: close\r\n")
            client.response_head()
            wait_until(lambda: fleet(router)[0]["decoding"] == 0)
            with pytest.raises((EOFError, ConnectionResetError)):
                client.read_exactly(8_000_000)
