"""The whole path with a real (tiny, random) model: what the router learns, what a cache saves, and that no answer
depends on either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from loadgen.processes import Child, Children, free_ports
from radix.events import decode_snapshot
from tests.router.harness import WAIT_S, wait_until
from tests.tiny_models import write_tiny

RADIXGATE = ["-m", "router.main"]
START_S = 60.0  # importing torch takes its time
BLOCK = 16
# Contexts of about 1,300 tokens, of which a replica holds one and a half.
SIZE = ["--block-size", str(BLOCK), "--max-model-len", "1400", "--max-running", "4", "--max-batched-tokens", "512"]
MODEL = "tiny"


class Site:
    """A router, two replicas of one model that join it, and a third without a prefix cache that stands alone."""

    def __init__(self, children: Children, model: Path) -> None:
        data_port, control_port = free_ports(2)
        self.url = f"http://127.0.0.1:{data_port}"
        self.control = f"http://127.0.0.1:{control_port}"
        self._children = children
        self._model = model
        listen = ["--listen", f"127.0.0.1:{data_port}", "--control", f"127.0.0.1:{control_port}"]
        children.start("router", [*RADIXGATE, "serve", *listen])
        self._plain = self._replica("plain", "--no-prefix-cache", "--kv-tokens", "4096")
        for name in ("r0", "r1"):
            # lru: what a test pushes out of the cache must not depend on how often it was used.
            self._replica(name, "--kv-tokens", "2080", "--eviction", "lru", "--join", self.control)
        wait_until(lambda: self.up() == {"r0", "r1"}, START_S)
        wait_until(lambda: bool(self._ready_url()), START_S)
        self.plain = self._ready_url()

    def _replica(self, name: str, *flags: str) -> Child:
        command = ["replica", "--model", str(self._model), "--served-model-name", MODEL, "--device", "cpu"]
        return self._children.start(
            name, [*RADIXGATE, *command, "--name", name, "--listen", "127.0.0.1:0", *SIZE, *flags]
        )

    def _ready_url(self) -> str:
        self._children.check()
        lines = self._plain.log_tail().splitlines()
        return next((line.rsplit(" ", 1)[1] for line in lines if line.startswith("replica plain serving")), "")

    def up(self) -> set[str]:
        self._children.check()
        try:
            fleet = httpx.get(self.control + "/fleet", timeout=WAIT_S).json()["replicas"]
        except httpx.TransportError:
            return set()
        return {replica["name"] for replica in fleet if replica["state"] == "up"}

    def receipt(self) -> dict[str, Any]:
        """The latest decision."""
        latest: dict[str, Any] = httpx.get(self.control + "/receipts").json()["receipts"][0]
        return latest

    def overlaps(self) -> dict[str, int]:
        """What the router believed each replica to hold of the latest request, in tokens."""
        receipt = self.receipt()
        return dict(zip(receipt["candidates"], receipt["overlap_tokens"], strict=True))

    def fleet(self) -> dict[str, dict[str, Any]]:
        return {replica["name"]: replica for replica in httpx.get(self.control + "/fleet").json()["replicas"]}

    def knows_everything(self) -> bool:
        """Whether the router believes of each replica exactly what it holds."""
        return all(
            held(f"{self.control}/replicas/{name}/residency") == held(replica["url"] + "/radixgate/blocks")
            for name, replica in self.fleet().items()
        )


def held(block_list: str) -> set[int]:
    """The keys in a block list."""
    stored = decode_snapshot(httpx.get(block_list, timeout=WAIT_S).content).stored
    return {key for chain in stored for key in chain.keys}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    model = write_tiny(tmp_path_factory.mktemp("model") / MODEL, "llama")
    with Children() as children:
        yield Site(children, model)


def ask(url: str, messages: list[Any], **fields: Any) -> tuple[str, httpx.Headers]:
    body = {"model": MODEL, "messages": messages, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **fields}
    answer = httpx.post(url + "/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"]), answer.headers


def conversation(topic: str, sentences: int = 40) -> list[Any]:
    text = " ".join(f"Sentence {number} says something new about {topic}." for number in range(sentences))
    return [{"role": "system", "content": text}, {"role": "user", "content": "Summarize."}]


def test_a_conversation_hits_its_cache_and_gets_the_answers_of_a_replica_without_one(site: Site) -> None:
    messages = conversation("bridges")
    replicas = set()
    for turn in range(4):
        text, headers = ask(site.url, messages)
        alone, plain = ask(site.plain, messages)
        assert text == alone
        assert plain["x-radixgate-cached-tokens"] == "0"
        replicas.add(headers["x-radixgate-replica"])
        cached = int(headers["x-radixgate-cached-tokens"])
        receipt = site.receipt()
        assert receipt["mode"] == "exact"
        assert cached == max(receipt["overlap_tokens"]), "what the router believed is what the replica found"
        assert bool(cached) == bool(turn)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": f"And point {turn}?"}]
    assert len(replicas) == 1


def test_an_eviction_is_reported_and_the_next_decision_changes(site: Site) -> None:
    whole, half = conversation("rivers", 70), conversation("rivers", 35)
    _, headers = ask(site.url, whole)
    home = headers["x-radixgate-replica"]
    (other,) = {"r0", "r1"} - {home}
    urls = {name: replica["url"] for name, replica in site.fleet().items()}
    ask(urls[other], half)  # past the router, which hears of it by the replica's report alone
    wait_until(site.knows_everything)
    _, headers = ask(site.url, whole)
    assert headers["x-radixgate-replica"] == home, "it holds more"
    before = site.overlaps()
    assert before[home] > before[other] > 0
    for topic in ("trains", "clocks", "bread"):
        ask(urls[home], conversation(topic, 70))
    wait_until(site.knows_everything)
    _, headers = ask(site.url, whole)
    after = site.overlaps()
    assert after[home] < before[other] == after[other]
    assert headers["x-radixgate-replica"] == other


def test_the_official_client_streams_and_reads_log_probabilities(site: Site) -> None:
    with openai.OpenAI(base_url=site.url + "/v1", api_key="any", timeout=60, max_retries=0) as client:
        messages: list[Any] = conversation("lamps", 5)
        whole = client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
        )
        stream = client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=8, temperature=0, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert text == whole.choices[0].message.content
        scores = whole.choices[0].logprobs
        assert scores is not None
        assert scores.content is not None
        for token in scores.content:
            assert len(token.top_logprobs) == 3
            assert token.logprob == pytest.approx(token.top_logprobs[0].logprob), "greedy takes the likeliest"


def test_a_seed_repeats_an_answer_on_any_replica(site: Site) -> None:
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 20, "seed": 11, "n": 2, "ignore_eos": True}
    answers = [
        [choice["text"] for choice in httpx.post(url + "/v1/completions", json=body, timeout=60).json()["choices"]]
        for url in (site.url, site.plain, site.url)
    ]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0] != answers[0][1], "two draws"


def test_what_never_fits_is_refused_with_a_reason(site: Site) -> None:
    body = {"model": MODEL, "messages": conversation("seas", 400)}
    answer = httpx.post(site.plain + "/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert "maximum context length is 1400 tokens" in json.loads(answer.content)["error"]["message"]
