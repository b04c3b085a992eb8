"""What the router learns of a replica's speed comes from first tokens, and only from those that mean something."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from tests.router.harness import Client, Peer, chat, fleet, hello, running_router, upstream, wait_until


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


@pytest.mark.parametrize(("answer", "stream"), [(_fails, True), (hello, False)])
def test_errors_and_answers_that_come_whole_teach_nothing(answer: Any, stream: bool) -> None:
    with upstream(answer) as server, running_router(server.url) as router, Client(router.port) as client:
        for _ in range(3):
            client.post(chat(stream=stream))
            client.response()
        wait_until(lambda: fleet(router)[0]["served"] == 3)
        (replica,) = fleet(router)
        assert replica["receipts_learned_from"] == 0
        assert (replica["waiting"], replica["decoding"], replica["queued_tokens"]) == (0, 0, 0)


def test_an_operator_sees_what_was_learned() -> None:
    with upstream(hello) as server, running_router(server.url) as router:
        (replica,) = httpx.get(f"{router.control}/fleet").json()["replicas"]
        assert replica["prefill_tokens_per_s"] == 8000  # the prior
        assert (replica["decode_slowdown"], replica["overhead_s"]) == (0.0, 0.0)
        said = f'radixgate_replica_prefill_tokens_per_second{{replica="{replica["name"]}"}} 8000.0'
        assert said in httpx.get(f"{router.control}/metrics").text
