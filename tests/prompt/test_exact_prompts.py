"""Exact mode: the router's keys are those that a replica computes, whatever its cache holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radix.blocks import block_keys, namespace_seed
from radix.chat import ChatTokenizer
from replica.tokenizer import corpus, directory
from router.api import CHAT, COMPLETIONS, Ask, BadBody, read_ask
from router.prompt import LONG_TAIL_BYTES, ExactPrompts, PromptKeys
from tests.prompt.asks import chat, completion, turns
from tests.prompt.models import TEMPLATE, every_kind, save

BLOCK = 4
SENTENCES = [sentence.strip() + "." for sentence in corpus().replace("\n", " ").split(".") if sentence.strip()]


@lru_cache
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.load(directory())


def computed_by_a_replica(ask: Ask, model: str = "m") -> list[int]:
    ids = tokenizer().encode_chat(json.loads(bytes(ask.messages)))
    return block_keys(ids, BLOCK, namespace_seed(model, "", ask.cache_salt or ""))


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


# Turns of a few long texts, so that conversations share prefixes, and cuts of all kinds occur.
parts = st.one_of(
    st.sampled_from(SENTENCES[:6]), st.sampled_from(["漢字 " * 40, "<|im_end|>\n", "", "a\n\nb", "é" * 300])
)
turn = st.lists(parts, max_size=30).map(" ".join)
talks = st.lists(turn, min_size=1, max_size=6)
salts = st.sampled_from([None, "a"])


@settings(deadline=None, max_examples=60)
@given(
    conversations=st.lists(st.tuples(talks, salts), min_size=1, max_size=5),
    cache_bytes=st.sampled_from([0, 1500, 4000, 1 << 20]),
)
def test_with_any_cache_the_keys_are_the_replicas(
    conversations: list[tuple[list[str], str | None]], cache_bytes: int
) -> None:
    prompts = ExactPrompts(tokenizer(), BLOCK, cache_bytes=cache_bytes)
    for talk, salt in conversations:
        for length in range(1, len(talk) + 1):
            ask = chat(turns(talk[:length]), cache_salt=salt)
            prompt = prompts.keys(ask, CHAT)
            assert prompt.keys == computed_by_a_replica(ask)
            assert prompt.tokens == len(tokenizer().encode_chat(turns(talk[:length])))
            assert (prompt.mode, prompt.block_size) == ("exact", BLOCK)


@settings(deadline=None, max_examples=60)
@given(talk=talks, more=talks)
def test_a_turn_begins_with_the_keys_of_the_turn_before(talk: list[str], more: list[str]) -> None:
    prompts = ExactPrompts(tokenizer(), BLOCK)
    before = chat(turns(talk), add_generation_prompt=False)
    keys = prompts.keys(before, CHAT).keys
    assert prompts.keys(chat(turns(talk + more)), CHAT).keys[: len(keys)] == keys
    # The generation prompt adds a block or two, no more.
    assert prompts.keys(chat(turns(talk)), CHAT).keys[: len(keys)] == keys


@pytest.mark.parametrize("kind", sorted(every_kind()))
def test_completions_of_every_kind_of_tokenizer(kind: str, tmp_path: Path) -> None:
    model = ChatTokenizer.load(save(every_kind()[kind], tmp_path, chat_template=TEMPLATE, bos_token="<s>"))
    prompts = ExactPrompts(model, BLOCK)
    text = "<s>" + "".join(f"{sentence}</s>" for sentence in SENTENCES[:40]) + " and 漢字"
    for special in (None, True, False):
        for end in (len(text) // 2, len(text), len(text)):
            ids = model.encode(text[:end], add_special_tokens=special is not False)
            prompt = prompts.keys(completion(text[:end], add_special_tokens=special), COMPLETIONS)
            assert prompt.keys == block_keys(ids, BLOCK, namespace_seed("m"))
            assert prompt.tokens == len(ids)


def test_token_ids_are_taken_as_they_are() -> None:
    ids = list(range(50))
    expected = PromptKeys(block_keys(ids, BLOCK, namespace_seed("m")), 50, BLOCK, "exact")
    prompts = ExactPrompts(tokenizer(), BLOCK)
    assert prompts.keys(completion(ids), COMPLETIONS) == expected
    assert prompts.keys(completion([ids, [1, 2]]), COMPLETIONS) == expected


def test_a_batch_is_routed_by_its_first_prompt() -> None:
    prompts = ExactPrompts(tokenizer(), BLOCK)
    one = prompts.keys(completion(SENTENCES[0]), COMPLETIONS)
    assert prompts.keys(completion([SENTENCES[0], SENTENCES[1]]), COMPLETIONS) == one
    assert len(one.keys) > 2


def test_fields_of_a_chat_reach_the_template() -> None:
    prompts = ExactPrompts(tokenizer(), BLOCK)
    tools = [{"type": "function", "function": {"name": "tide"}}]
    talk = turns(SENTENCES[:2])
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"tools": tools}, {"tools": tools}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        ({"continue_final_message": True}, {"add_generation_prompt": False, "continue_final_message": True}),
        ({"chat_template_kwargs": {"tools": tools}}, {"tools": tools}),
    ]
    for fields, options in cases:
        ids = tokenizer().encode_chat(talk, **options)
        assert prompts.keys(chat(talk, **fields), CHAT).keys == block_keys(ids, BLOCK, namespace_seed("m"))


def test_the_namespace_is_the_replicas_model_if_that_is_known() -> None:
    ask = chat(turns(SENTENCES[:2]), model="an-alias")
    assert ExactPrompts(tokenizer(), BLOCK).keys(ask, CHAT).keys == computed_by_a_replica(ask, "an-alias")
    assert ExactPrompts(tokenizer(), BLOCK, "m").keys(ask, CHAT).keys == computed_by_a_replica(ask, "m")


def test_a_prompt_shorter_than_a_block_has_no_keys() -> None:
    prompt = ExactPrompts(tokenizer(), 64).keys(chat(turns(["Hi"])), CHAT)
    assert prompt.keys == []
    assert prompt.mode == "exact"
    assert 0 < prompt.tokens < 64


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}
SURROGATE = {"function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}


@pytest.mark.parametrize("ask", [
    chat([IMAGE]),
    chat([{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *IMAGE["content"]]}]),
    chat([{"role": "pirate", "content": "Arr"}]),
    chat([5]),
    chat([{"role": "user"}, [], None]),
    chat([{"role": "assistant", "content": None, "tool_calls": 7}]),
    chat([{"role": "assistant", "content": None, "tool_calls": [SURROGATE]}]),
    chat(turns(["Hi"]), tools=5),
    chat(turns(["Hi"]), add_generation_prompt=True, continue_final_message=True),
    chat(turns(["Hi"]), chat_template_kwargs={"messages": []}),
    completion(None),
    completion(5),
    completion({"a": 1}),
    completion([1, -1]),
    completion([1, 2**32]),
    completion([1.5]),
    completion([True]),
    completion([1, "a"]),
])  # fmt: skip
def test_what_cannot_be_read_exactly_is_routed_by_load(ask: Ask) -> None:
    path = COMPLETIONS if len(ask.prompt) else CHAT
    prompt = ExactPrompts(tokenizer(), BLOCK).prepare(ask, path)
    assert isinstance(prompt, PromptKeys)
    assert (prompt.keys, prompt.mode) == ([], "none")
    assert prompt.tokens > 0


def test_empty_prompts_are_prompts() -> None:
    prompts = ExactPrompts(tokenizer(), BLOCK)
    assert prompts.keys(completion(""), COMPLETIONS) == PromptKeys([], 0, BLOCK, "exact")
    assert prompts.keys(completion([]), COMPLETIONS) == PromptKeys([], 0, BLOCK, "exact")
    assert prompts.keys(chat([]), CHAT).mode == "exact"


@pytest.mark.parametrize(("path", "body", "param"), [
    (CHAT, b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}', "messages"),
    (CHAT, b'{"model":"m","messages":[],"tools":["\xff"]}', "tools"),
    (COMPLETIONS, b'{"model":"m","prompt":"\xff"}', "prompt"),
])  # fmt: skip
def test_a_prompt_that_is_not_decodable_is_refused(path: str, body: bytes, param: str) -> None:
    with pytest.raises(BadBody, match=f"`{param}` cannot be decoded") as refused:
        ExactPrompts(tokenizer(), BLOCK).prepare(read_ask(path, body), path)
    assert refused.value.param == param


async def test_only_a_long_unknown_tail_leaves_the_event_loop(executor: Executor) -> None:
    prompts = ExactPrompts(tokenizer(), BLOCK, executor=executor)
    document = corpus()[: 3 * LONG_TAIL_BYTES]
    first = chat(turns([document]))
    waiting = prompts.prepare(first, CHAT)
    assert isinstance(waiting, Awaitable)
    assert (await waiting).keys == computed_by_a_replica(first)
    for ask in (first, chat(turns([document, "Yes.", "And then?"])), chat(turns([document + " Is that so?"]))):
        known = prompts.prepare(ask, CHAT)
        assert isinstance(known, PromptKeys)
        assert known.keys == computed_by_a_replica(ask)


async def test_siblings_tokenized_at_once_do_not_disturb_each_other(executor: Executor) -> None:
    prompts = ExactPrompts(tokenizer(), BLOCK, executor=executor, cache_bytes=6000)
    lengths = accumulate([LONG_TAIL_BYTES + 100, 500, 4000, 9000])
    asks = [chat(turns([corpus()[:length], "Yes.", "Why?"])) for length in lengths for _ in range(2)]
    waiting = [prompts.prepare(ask, CHAT) for ask in asks]
    found = await asyncio.gather(*(each for each in waiting if isinstance(each, Awaitable)))
    assert len(found) == len(asks)
    assert [prompt.keys for prompt in found] == [computed_by_a_replica(ask) for ask in asks]


def test_the_same_question_about_other_fields_is_another_prompt() -> None:
    prompts = ExactPrompts(tokenizer(), BLOCK)
    talk: list[Any] = turns(SENTENCES[:3])
    variants = [chat(talk), chat(talk, cache_salt="a"), chat(talk, cache_salt="b"), chat(talk, model="n")]
    keys = [key for ask in variants for key in prompts.keys(ask, CHAT).keys]
    assert len(set(keys)) == len(keys)
