"""Log probabilities in OpenAI's two forms, whole and streamed, also of tokens that are part of a character."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from radix.chat import ChatTokenizer
from replica.logprobs import LOWEST, ForCompletion, for_chat
from replica.sampling_params import TokenLogprobs
from tests.replica.scripted import bundled_tokenizer, scripted_server
from tests.replica.test_server import events

TEXT = "Straße 🌉 bridges"


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return bundled_tokenizer()


@pytest.fixture(scope="module")
def script(tokenizer: ChatTokenizer) -> list[int]:
    """The tokens of the text, in which the emoji takes several, and the end."""
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    assert any("\ufffd" in tokenizer.decode([token]) for token in tokens)
    return [*tokens, min(tokenizer.eos_ids)]


@pytest.fixture
async def url(script: list[int]) -> AsyncIterator[str]:
    async with scripted_server(script) as (url, _):
        yield url


async def test_a_chat_s_logprobs_name_every_token_and_its_bytes(
    url: str, script: list[int], tokenizer: ChatTokenizer
) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = await client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=2
        )
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (TEXT, "stop")
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    assert [entry.logprob for entry in content] == [-token / 1000 for token in script]
    assert b"".join(bytes(entry.bytes or ()) for entry in content).decode() == TEXT + content[-1].token
    assert content[-1].token == tokenizer.decode(script[-1:], False)
    parts = [entry.token for entry in content if entry.token.startswith("\\x")]
    assert "".join(parts).endswith("\\x8c\\x89"), "the emoji's last bytes"
    for token, entry in zip(script, content, strict=True):
        assert [(bytes(top.bytes or ()), top.logprob) for top in entry.top_logprobs] == [
            (tokenizer.pieces(token - 1), -0.25),
            (tokenizer.pieces(token - 2), -0.5),
        ]


async def test_without_a_number_there_are_no_rivals(url: str) -> None:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "logprobs": True}
    async with httpx.AsyncClient(base_url=url) as http:
        choice = (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]
        plain = (await http.post("/v1/chat/completions", json=body | {"logprobs": False})).json()["choices"][0]
    assert {tuple(entry["top_logprobs"]) for entry in choice["logprobs"]["content"]} == {()}
    assert plain["logprobs"] is None


@pytest.mark.parametrize("n", [1, 2])
async def test_a_streamed_chat_has_the_same_logprobs(url: str, n: int) -> None:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 1}
    async with httpx.AsyncClient(base_url=url) as http:
        whole = (await http.post("/v1/chat/completions", json=body | {"n": n})).json()["choices"]
        streamed = events((await http.post("/v1/chat/completions", json=body | {"n": n, "stream": True})).text)
    found: list[list[Any]] = [[] for _ in range(n)]
    for event in streamed:
        for choice in event["choices"]:
            found[choice["index"]] += (choice["logprobs"] or {"content": []})["content"]
    assert found == [choice["logprobs"]["content"] for choice in whole]


async def test_a_completion_s_logprobs_have_the_older_form(url: str, script: list[int]) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = await client.completions.create(model="scripted", prompt="hi", logprobs=2, max_tokens=50)
    choice = answer.choices[0]
    assert choice.text == TEXT
    found = choice.logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.text_offset is not None
    assert found.top_logprobs is not None
    assert found.token_logprobs == [-token / 1000 for token in script]
    for name, offset, following in zip(found.tokens, found.text_offset, found.text_offset[1:], strict=False):
        if not name.startswith("bytes:"):
            assert TEXT[offset:following] == name
    assert [name for name in found.tokens if name.startswith("bytes:\\x")]
    assert found.text_offset[-1] == len(TEXT)
    for name, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert top[name] in (logprob, -0.25, -0.5), "the token itself is among its likeliest"
        assert len(top) <= 3


async def test_a_streamed_completion_has_the_same_logprobs(url: str) -> None:
    body = {"model": "scripted", "prompt": ["hi", "ho"], "logprobs": 1, "max_tokens": 50}
    async with httpx.AsyncClient(base_url=url) as http:
        whole = (await http.post("/v1/completions", json=body)).json()["choices"]
        streamed = events((await http.post("/v1/completions", json=body | {"stream": True})).text)
    for choice in whole:
        parts = [
            event["choices"][0]["logprobs"] for event in streamed if event["choices"][0]["index"] == choice["index"]
        ]
        joined = {field: [one for part in parts for one in part[field]] for field in choice["logprobs"]}
        assert joined == choice["logprobs"]


async def test_what_a_stop_string_hides_does_not_show_and_its_tokens_are_still_accounted_for(
    url: str, script: list[int]
) -> None:
    body = {"model": "scripted", "prompt": "hi", "logprobs": 0, "max_tokens": 50, "stop": "🌉 b"}
    async with httpx.AsyncClient(base_url=url) as http:
        answer = (await http.post("/v1/completions", json=body)).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Straße ", "stop")
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["completion_tokens"] < len(script)


async def test_special_tokens_show_if_that_is_wanted(url: str, script: list[int], tokenizer: ChatTokenizer) -> None:
    body = {"model": "scripted", "prompt": "hi", "max_tokens": len(script), "ignore_eos": True}
    async with httpx.AsyncClient(base_url=url) as http:
        hidden = (await http.post("/v1/completions", json=body)).json()["choices"][0]["text"]
        shown = (await http.post("/v1/completions", json=body | {"skip_special_tokens": False})).json()["choices"][0]
    assert (hidden, shown["text"]) == (TEXT, TEXT + tokenizer.decode(script[-1:], False))


def test_what_json_cannot_say_is_very_unlikely(tokenizer: ChatTokenizer) -> None:
    never = [TokenLogprobs(float("-inf"), ((5, float("-inf")),))]
    (entry,) = for_chat([7], never, tokenizer.pieces)["content"]
    assert (entry["logprob"], entry["top_logprobs"][0]["logprob"]) == (LOWEST, LOWEST)
    found = ForCompletion(tokenizer.pieces).part([7], never)
    assert found["token_logprobs"] == [LOWEST]
    assert set(found["top_logprobs"][0].values()) == {LOWEST}
