"""The whole path with real processes: router, bundled replicas, and the clients that people use."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from loadgen.processes import Child, Children, free_ports
from tests.router.harness import WAIT_S, wait_until

RADIXGATE = ["-m", "router.main"]
SLOW = ["--prefill-rate", "4000", "--step-ms", "20"]
QUICK = ["--speedup", "100"]


class Site:
    """A router and the replicas that join it, each a process."""

    def __init__(self, children: Children) -> None:
        data_port, control_port = free_ports(2)
        self.url = f"http://127.0.0.1:{data_port}"
        self.control = f"http://127.0.0.1:{control_port}"
        self._children = children
        self._starts = 0
        self.router = self._start(
            "serve", "--listen", f"127.0.0.1:{data_port}", "--control", f"127.0.0.1:{control_port}"
        )
        wait_until(lambda: self.answers("/healthz/live"))

    def replica(self, name: str, *flags: str) -> Child:
        listen = ["--listen", "127.0.0.1:0", "--join", self.control]
        return self._start("replica", "--name", name, "--served-model-name", "m", *listen, *flags)

    def _start(self, *arguments: str) -> Child:
        self._starts += 1
        return self._children.start(f"{arguments[0]}-{self._starts}", [*RADIXGATE, *arguments])

    def answers(self, path: str) -> bool:
        try:
            return httpx.get(self.control + path, timeout=WAIT_S).status_code == 200
        except httpx.TransportError:
            return False

    def fleet(self) -> dict[str, dict[str, Any]]:
        return {replica["name"]: replica for replica in httpx.get(self.control + "/fleet").json()["replicas"]}

    def up(self) -> set[str]:
        return {name for name, replica in self.fleet().items() if replica["state"] == "up"}

    def receipts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.get(self.control + "/receipts").json()["receipts"]
        return found

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key="any", timeout=60, max_retries=0)


@pytest.fixture
def site() -> Iterator[Site]:
    with Children() as children:
        yield Site(children)


@pytest.fixture(scope="module")
def warm() -> Iterator[Site]:
    """Two quick replicas, shared by the tests that leave them as they are."""
    with Children() as children:
        shared = Site(children)
        for name in ("r0", "r1"):
            shared.replica(name, *QUICK)
        wait_until(lambda: shared.up() == {"r0", "r1"})
        yield shared


@pytest.fixture
def client(warm: Site) -> Iterator[openai.OpenAI]:
    with warm.client() as opened:
        yield opened


def document(topic: str, sentences: int = 60) -> str:
    return " ".join(f"Sentence {number} says something new about {topic}." for number in range(sentences))


# The official client.


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["m"]
    assert client.models.retrieve("m").id == "m"
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.models.retrieve("nobody")


def test_a_conversation_finds_its_warm_replica(client: openai.OpenAI, warm: Site) -> None:
    messages: list[Any] = [
        {"role": "system", "content": document("bridges")},
        {"role": "user", "content": "Summarize."},
    ]
    served = set()
    for turn in range(4):
        raw = client.chat.completions.with_raw_response.create(model="m", messages=messages, max_tokens=30)
        served.add(raw.headers["x-radixgate-replica"])
        answer = raw.parse()
        usage = answer.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        cached = usage.prompt_tokens_details.cached_tokens or 0
        assert int(raw.headers["x-radixgate-cached-tokens"]) == cached
        if turn:
            assert cached > 0.8 * usage.prompt_tokens
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        messages.append({"role": "user", "content": f"And what of point {turn}?"})
    assert len(served) == 1
    receipt = warm.receipts()[0]
    assert receipt["mode"] == "exact"
    assert receipt["cached_tokens"] == max(receipt["overlap_tokens"])  # what was believed is what was found


def test_streaming(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "Hello there"}],
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "Hello there"}], max_tokens=20
    )
    assert text == whole.choices[0].message.content
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 20


def test_completions_by_text_and_by_token_ids(client: openai.OpenAI, warm: Site) -> None:
    text = client.completions.create(model="m", prompt="Once upon a time", max_tokens=8)
    tokens = httpx.post(warm.url + "/tokenize", json={"model": "m", "prompt": "Once upon a time"}).json()["tokens"]
    ids = client.completions.create(model="m", prompt=tokens, max_tokens=8)
    assert text.choices[0].text == ids.choices[0].text
    streamed = client.completions.create(model="m", prompt=tokens, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == ids.choices[0].text


def test_errors_are_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody", messages=messages)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(model="m", messages=messages, max_tokens=-1)
    with pytest.raises(openai.BadRequestError, match="context length"):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "word " * 50_000}])


# curl.


def curl(*arguments: str) -> tuple[str, str]:
    """The response's head and body."""
    done = subprocess.run(["curl", "-sSi", "--max-time", "20", *arguments], capture_output=True, check=True)
    answer = done.stdout.decode()
    *_, head, body = answer.split("\r\n\r\n", answer.count("HTTP/1"))
    return head, body


CHAT = json.dumps({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]})
STREAM = json.dumps({"model": "m", "max_tokens": 5, "stream": True, "messages": [{"role": "user", "content": "hi"}]})


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--http1.0"],
        ["-H", "Transfer-Encoding: chunked"],
        ["-H", "Expect: 100-continue"],
        ["-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue"],
        ["-H", "Connection: close"],
        ["--http2"],
    ],
    ids=" ".join,
)
def test_curl(warm: Site, flags: list[str]) -> None:
    head, body = curl(*flags, warm.url + "/v1/chat/completions", "-d", CHAT)
    assert " 200 " in head
    assert json.loads(body)["usage"]["completion_tokens"] == 5
    head, body = curl("-N", *flags, warm.url + "/v1/chat/completions", "-d", STREAM)
    assert " 200 " in head
    assert body.startswith("data: {")
    assert body.rstrip().endswith("data: [DONE]")


# Death.


def start_chats(
    site: Site, count: int, results: list[str], **options: Any
) -> tuple[ThreadPoolExecutor, Callable[[int], None]]:
    """A pool, and the job of one streamed chat, which notes "whole", "cut" (a clean error event) or what else came."""

    def chat(number: int) -> None:
        messages: list[Any] = [{"role": "user", "content": document(f"subject {number}", 100)}]
        with site.client() as client:
            try:
                finish = None
                for piece in client.chat.completions.create(model="m", messages=messages, stream=True, **options):
                    finish = piece.choices[0].finish_reason
                results.append("whole" if finish == "length" else f"ended by {finish}")
            except openai.APIStatusError as error:
                results.append(f"status {error.status_code}")
            except openai.APIError as error:
                results.append("cut" if error.code == "replica_lost" else repr(error))

    return ThreadPoolExecutor(count), chat


def test_a_replica_killed_under_load(site: Site) -> None:
    victim = site.replica("r0", *SLOW)
    for name in ("r1", "r2"):
        site.replica(name, *SLOW)
    wait_until(lambda: site.up() == {"r0", "r1", "r2"})
    results: list[str] = []
    pool, chat = start_chats(site, 18, results, max_tokens=60)
    with pool:
        for number in range(18):
            pool.submit(chat, number)

        def both_kinds() -> bool:
            replica = site.fleet()["r0"]
            return bool(replica["decoding"] and replica["waiting"])

        wait_until(both_kinds)
        begun = site.fleet()["r0"]["decoding"]
        victim.signal_group(signal.SIGKILL)
        victim.process.wait()
        wait_until(lambda: site.fleet()["r0"]["state"] == "down")
        assert site.fleet()["r0"]["reported_blocks"] == 0
    # Streams that had begun end cleanly; all that had no byte yet succeed elsewhere.
    assert set(results) <= {"whole", "cut"}
    assert len(results) == 18
    assert 1 <= results.count("cut") <= begun + 2  # one or two may begin between the look and the kill
    assert any(receipt.get("attempts", 1) > 1 and receipt["status"] == 200 for receipt in site.receipts())
    assert all(replica["waiting"] == replica["decoding"] == 0 for replica in site.fleet().values())

    epoch = site.fleet()["r0"]["epoch"]
    site.replica("r0", *QUICK)
    wait_until(lambda: site.up() == {"r0", "r1", "r2"})
    assert site.fleet()["r0"]["epoch"] > epoch


def test_the_router_drains_on_sigterm(site: Site) -> None:
    site.replica("r0", *SLOW)
    wait_until(lambda: site.up() == {"r0"})
    results: list[str] = []
    pool, chat = start_chats(site, 3, results, max_tokens=40)
    with pool:
        for number in range(3):
            pool.submit(chat, number)
        wait_until(lambda: site.fleet()["r0"]["decoding"] == 3)
        site.router.process.send_signal(signal.SIGTERM)
        assert site.router.process.wait(WAIT_S) == 0
    assert results == ["whole"] * 3


def test_a_client_that_leaves_frees_the_replica(site: Site) -> None:
    site.replica("r0", *SLOW)
    wait_until(lambda: site.up() == {"r0"})
    url = site.fleet()["r0"]["url"]
    body = {"model": "m", "stream": True, "max_tokens": 5000, "messages": [{"role": "user", "content": "hi"}]}
    with httpx.stream("POST", site.url + "/v1/chat/completions", json=body, timeout=WAIT_S) as response:
        lines = response.iter_lines()
        next(lines)
        wait_until(lambda: running(url) == 1)
    wait_until(lambda: running(url) == 0)


def running(url: str) -> float:
    for line in httpx.get(url + "/metrics").text.splitlines():
        if line.startswith("vllm:num_requests_running"):
            return float(line.rpartition(" ")[2])
    raise AssertionError("no such metric")


def test_a_burst_of_siblings_goes_where_the_first_went(warm: Site) -> None:
    shared = document("a burst", 400)
    bodies = [
        {"model": "m", "max_tokens": 2, "messages": [{"role": "user", "content": f"{shared} Question {number}?"}]}
        for number in range(4)
    ]
    barrier = threading.Barrier(len(bodies))

    def ask(body: dict[str, Any]) -> str:
        barrier.wait(WAIT_S)
        answer = httpx.post(warm.url + "/v1/chat/completions", json=body, timeout=WAIT_S)
        return answer.headers["x-radixgate-replica"]

    with ThreadPoolExecutor(len(bodies)) as pool:
        assert len(set(pool.map(ask, bodies))) == 1
