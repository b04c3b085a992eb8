"""What the router learns of a replica's speed comes from first tokens, and only from those that mean something."""

from __future__ import annotations

import socket
import threading
from typing import Any

import httpx
import pytest

from scoring.answers import AnswerTimes
from tests.router.harness import Client, Peer, chat, fleet, hello, receipts, running_router, upstream, wait_until


def test_the_head_of_a_stream_is_not_its_first_token() -> None:
    """vLLM sends it before it has computed anything."""
    go_on = threading.Event()

    def head_first(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send_stream_head()
        assert go_on.wait(10)
        peer.send_event("one")
        peer.send(b"0\r\n\r\n")

    with upstream(head_first) as server, running_router(server.url) as router, Client(router.port) as client:
        client.post(chat(stream=True))
        client.response_head()
        (replica,) = fleet(router)
        assert (replica["waiting"], replica["decoding"]) == (1, 0)
        assert replica["queued_tokens"] > 0
        go_on.set()
        client.read_until(b"0\r\n\r\n")
        wait_until(lambda: fleet(router)[0]["served"] == 1)
        assert fleet(router)[0]["receipts_learned_from"] == 1


def _fails(peer: Peer, head: bytes, body: bytes) -> None:
    peer.send_json({"error": {"message": "no"}}, status=500)


@pytest.mark.parametrize(("answer", "stream"), [(_fails, True), (hello, False), (hello, True)])
def test_errors_and_answers_that_come_whole_teach_nothing(answer: Any, stream: bool) -> None:
    with upstream(answer) as server, running_router(server.url) as router, Client(router.port) as client:
        for _ in range(3):
            client.post(chat(stream=stream))
            client.response()
        wait_until(lambda: fleet(router)[0]["served"] == 3)
        (replica,) = fleet(router)
        assert replica["receipts_learned_from"] == 0
        assert (replica["waiting"], replica["decoding"], replica["queued_tokens"]) == (0, 0, 0)


def test_where_tokens_are_estimated_the_replicas_own_count_of_them_is_only_recorded() -> None:
    """Text that it has in four times as many tokens as the router took it for would seem to be cached altogether."""

    def answer(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send_stream_head(b"x-radixgate-cached-tokens: 4000\r\n")
        peer.send_event("one")
        peer.send(b"0\r\n\r\n")

    with upstream(answer) as server, running_router(server.url) as router, Client(router.port) as client:
        replica = fleet(router)[0]
        while replica["receipts_learned_from"] < 6:
            client.post(chat(f"{replica['served']} " + "x" * 4000, stream=True))
            client.read_until(b"0\r\n\r\n")
            (replica,) = fleet(router)
        assert replica["prefill_tokens_per_s"] != 8000  # the prior; a receipt of next to no work changes nothing
        assert {receipt["cached_tokens"] for receipt in receipts(router)} == {4000}


def test_a_request_without_a_prompt_neither_teaches_nor_makes_its_replica_look_stuck() -> None:
    go_on = threading.Event()

    def answer(peer: Peer, head: bytes, body: bytes) -> None:
        if b"held" in body:
            assert go_on.wait(10)
        hello(peer, head, body)

    with (
        upstream(answer) as server,
        running_router(server.url) as router,
        Client(router.port) as one,
        Client(router.port) as two,
        Client(router.port) as three,
    ):
        one.post({"model": "m", "input": "held"}, path="/v1/embeddings")
        wait_until(lambda: fleet(router)[0]["waiting"] == 1)
        two.post(chat("held", stream=True))
        wait_until(lambda: fleet(router)[0]["waiting"] == 2)
        (cost,) = receipts(router)[0]["costs"]
        assert cost < 60.0  # not the time since the machine started
        for _ in range(3):
            three.post({"model": "m", "input": "x"}, path="/v1/embeddings")
            assert three.response()[0] == 200  # while there is a queue
        assert fleet(router)[0]["receipts_learned_from"] == 0
        go_on.set()
        one.response()
        two.response()


def test_an_operator_sees_what_was_learned() -> None:
    with upstream(hello) as server, running_router(server.url) as router:
        (replica,) = httpx.get(f"{router.control}/fleet").json()["replicas"]
        assert replica["prefill_tokens_per_s"] == 8000  # the prior
        assert (replica["decode_slowdown"], replica["overhead_s"]) == (0.0, 0.0)
        said = f'radixgate_replica_prefill_tokens_per_second{{replica="{replica["name"]}"}} 8000.0'
        assert said in httpx.get(f"{router.control}/metrics").text


def test_how_long_answers_decode_is_learned_from_those_that_came_whole() -> None:
    whole = threading.Event()

    def answer(peer: Peer, head: bytes, body: bytes) -> None:
        peer.send_stream_head()
        peer.send_event("one")
        if whole.is_set():
            peer.send(b"0\r\n\r\n")
        else:
            peer.sock.shutdown(socket.SHUT_RDWR)

    with upstream(answer) as server, running_router(server.url) as router:
        for _ in range(3):
            with Client(router.port) as client:
                client.post(chat(stream=True, max_tokens=64))
                client.read_until(b"0\r\n\r\n")
            wait_until(lambda: receipts(router)[0].get("duration_s") is not None)
            whole.set()
        predicted = [receipt["answer_s"] for receipt in reversed(receipts(router))]
        assert predicted[0] == predicted[1] == AnswerTimes().predict(64)  # the first broke off
        assert predicted[2] < predicted[1]
