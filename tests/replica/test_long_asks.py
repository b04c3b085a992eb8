"""Long prompts and long answers: nobody else waits while they are read or written; what is too long is refused soon."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from radix.pieces import TokenPieces
from replica.answers import ChatForm, whole_body
from replica.blocks import Namespace
from replica.errors import ApiError
from replica.generation import Output
from replica.intake import Intake
from replica.request import Finish, Limits, Request
from replica.sampling_params import SamplingParams, TokenLogprobs
from replica.schema import CompletionAsk
from replica.service import ReplicaService
from replica.settings import Settings
from tests.replica.conftest import QUICK
from tests.replica.scripted import bundled_tokenizer

WORDS = "the quick brown fox is lazy, and the dog jumps over 13 bridges. "


@pytest.fixture
async def roomy() -> AsyncIterator[httpx.AsyncClient]:
    """A server with room for a hundred thousand tokens."""
    service = ReplicaService(Settings("r1", kv_blocks=8000, max_model_len=100_000, timing=QUICK, drain_s=0.1))
    await service.start()
    async with httpx.AsyncClient(base_url=service.url, timeout=20) as http:
        yield http
    await service.stop()


async def test_a_long_prompt_has_the_tokens_that_tokenize_gives(roomy: httpx.AsyncClient) -> None:
    text = WORDS * 3000
    tokens = (await roomy.post("/tokenize", json={"prompt": text})).json()["tokens"]
    for prompt in (tokens, text):
        body = {"model": "simulated", "prompt": prompt, "max_tokens": 1}
        answer = await roomy.post("/v1/completions", json=body)
        assert answer.json()["usage"]["prompt_tokens"] == len(tokens)
    assert int(answer.headers["x-radixgate-cached-tokens"]) == (len(tokens) - 1) // 16 * 16


async def test_a_prompt_that_is_far_too_long_is_refused_before_its_end() -> None:
    intake = Intake(bundled_tokenizer(), "m", 4096)
    text = WORDS * 50_000
    with pytest.raises(ApiError, match=r"context length is 4096 tokens\. The prompt has more than ") as refused:
        await intake.completion(CompletionAsk(model="m", prompt=text), len(text))
    intake.close()
    assert refused.value.code == "context_length_exceeded"


async def test_many_tokens_are_turned_into_text_beside_everything_else() -> None:
    intake = Intake(bundled_tokenizer(), "m", 4096)
    tokens = bundled_tokenizer().encode(WORDS * 1000, add_special_tokens=False)
    work = [asyncio.create_task(intake.decode(tokens)), asyncio.create_task(intake.strings(tokens))]
    await asyncio.sleep(0)
    assert not any(task.done() for task in work)
    whole, pieces = await asyncio.gather(*work)
    intake.close()
    assert whole == "".join(pieces) == WORDS * 1000


@pytest.mark.parametrize(("length", "aside"), [(10, False), (200, True)])
async def test_a_long_answer_is_written_beside_everything_else(length: int, aside: bool) -> None:
    threads = set()

    class Watched(ChatForm):
        def choice(self, index: int, answer: Output) -> dict[str, Any]:
            threads.add(threading.get_ident())
            return super().choice(index, answer)

    params = SamplingParams(logprobs=20)
    request = Request([1], Limits(length), Namespace("m"), sampling=params)
    found = TokenLogprobs(-0.5, tuple((token, -1.0) for token in range(5, 25)))
    for token in range(length):
        request.take(token, found)
    parts = [Output((token,), "x", None, (found,)) for token in request.output]
    parts.append(Output((), "", Finish.LENGTH))
    form = Watched("m", "id", False, pieces())
    body = await whole_body(form, [parts], [request])
    assert body.count(b'"top_logprobs"') == length
    assert (threads != {threading.get_ident()}) is aside


def pieces() -> TokenPieces:
    return bundled_tokenizer().pieces
