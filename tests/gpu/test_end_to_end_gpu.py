"""`radixgate replica` on a GPU, through HTTP: its greedy answers are those of the same model on the CPU."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from loadgen.processes import Child, Children, free_ports
from tests.tiny_models import write_tiny

START_S = 120.0  # kernels are compiled and graphs captured meanwhile
ANSWER_S = 120.0
MODEL = "tiny"
# A head dimension of 64, the least that real models have.
SHAPE = {"hidden_size": 256, "intermediate_size": 384}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "mistral": SHAPE,  # a window of 32 tokens
    "qwen3_moe": {"hidden_size": 256, "head_dim": 64, "moe_intermediate_size": 96},
}
SIZE = ["--max-model-len", "1024", "--max-running", "8", "--max-batched-tokens", "256", "--kv-tokens", "8192"]


@dataclass(frozen=True)
class Pair:
    """The same model on a GPU and on the CPU, as URLs."""

    gpu: str
    cpu: str


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    family = request.param
    model = write_tiny(tmp_path_factory.mktemp(family) / MODEL, family, **FAMILIES[family])
    with Children() as children:
        devices = dict(zip(("cuda", "cpu"), free_ports(2), strict=True))
        replicas = {device: start(children, model, device, port) for device, port in devices.items()}
        for device, port in devices.items():
            asyncio.run(children.until_ready(replicas[device], f"http://127.0.0.1:{port}/health", START_S))
        yield Pair(*(f"http://127.0.0.1:{port}" for port in devices.values()))


def start(children: Children, model: Path, device: str, port: int) -> Child:
    where = ["--device", device, "--dtype", "float32", "--listen", f"127.0.0.1:{port}", "--name", device]
    return children.start(device, ["-m", "replica.cli", "--model", str(model), *where, *SIZE])


def complete(url: str, prompt: list[int], **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 48, "temperature": 0, "ignore_eos": True, **fields}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=ANSWER_S)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def text(url: str, prompt: list[int]) -> str:
    return str(complete(url, prompt)["choices"][0]["text"])


def prompts(*lengths: int) -> list[list[int]]:
    random = Random(7)
    return [random.choices(range(16, 3000), k=length) for length in lengths]


def test_greedy_answers_are_those_of_the_cpu(pair: Pair) -> None:
    for prompt in prompts(1, 17, 100, 700):  # the last is prefilled in three chunks
        assert text(pair.gpu, prompt) == text(pair.cpu, prompt), f"a prompt of {len(prompt)} tokens"


def test_neighbours_in_a_batch_change_no_answer(pair: Pair) -> None:
    asked = prompts(30, 5, 300, 64, 9, 120, 33)
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda prompt: text(pair.gpu, prompt), asked))
    assert together == [text(pair.cpu, prompt) for prompt in asked]


def test_a_cached_prefix_changes_no_answer(pair: Pair) -> None:
    (prompt,) = prompts(333)
    first, second = (complete(pair.gpu, prompt[16:]) for _ in range(2))
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 300
    assert first["choices"][0]["text"] == second["choices"][0]["text"] == text(pair.cpu, prompt[16:])


def test_a_seed_draws_the_same_tokens_alone_and_among_others(pair: Pair) -> None:
    (prompt,) = prompts(40)
    drawn = {"temperature": 1.0, "seed": 5, "n": 3}
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(text, pair.gpu, other) for other in prompts(20, 50)]
        among = complete(pair.gpu, prompt, **drawn)
        for answer in busy:
            answer.result()
    alone = complete(pair.gpu, prompt, **drawn)
    texts = [choice["text"] for choice in alone["choices"]]
    assert texts == [choice["text"] for choice in among["choices"]]
    assert len(set(texts)) == 3
