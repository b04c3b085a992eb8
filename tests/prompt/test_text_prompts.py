"""Text mode: a conversation's turn begins with the keys of the turn before, and nothing else shares keys with it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radix.blocks import hash_chunks, namespace_seed
from router.api import CHAT, COMPLETIONS, read_ask
from router.prompt import TEXT_BLOCK_TOKENS, TextPrompts
from tests.prompt.asks import chat, completion, turns

texts = st.lists(st.text(max_size=90), min_size=1, max_size=12)
CHUNK = 32


@given(texts=texts, more=texts, indent=st.sampled_from([None, 2]))
def test_a_turn_begins_with_the_keys_of_the_turn_before(texts: list[str], more: list[str], indent: int | None) -> None:
    prompts = TextPrompts(CHUNK)
    first, second = (
        read_ask(CHAT, json.dumps({"model": "m", "messages": turns(each)}, indent=indent).encode())
        for each in (texts, texts + more)
    )
    keys = prompts.prepare(first, CHAT).keys
    assert prompts.prepare(second, CHAT).keys[: len(keys)] == keys
    # Nearly all of the turn has keys: only what does not fill a chunk is missing.
    assert len(keys) >= (len(bytes(first.messages)) - 3) // CHUNK - 1


@given(text=st.text(), more=st.text())
def test_a_longer_text_begins_with_the_keys_of_the_shorter(text: str, more: str) -> None:
    prompts = TextPrompts(CHUNK)
    keys = prompts.prepare(completion(text), COMPLETIONS).keys
    assert prompts.prepare(completion(text + more), COMPLETIONS).keys[: len(keys)] == keys


def test_the_keys_are_chained_hashes_of_tools_and_messages() -> None:
    tools = [{"type": "function", "function": {"name": "tide"}}]
    ask = chat(turns(["High water? " * 30]), tools=tools, cache_salt="s")
    prompt = TextPrompts(CHUNK).prepare(ask, CHAT)
    text = bytes(ask.tools) + bytes(ask.messages)[:-1]
    assert prompt.keys == hash_chunks(text, CHUNK, namespace_seed("m", "", "s"))
    assert (prompt.mode, prompt.block_size, prompt.tokens) == ("text", CHUNK // 4, len(text) // 4 + 1)


def test_models_salts_and_tools_keep_prompts_apart() -> None:
    messages = turns(["High water? " * 30])
    asks = [
        chat(messages),
        chat(messages, model="other"),
        chat(messages, cache_salt="a"),
        chat(messages, cache_salt="b"),
        chat(messages, tools=[{"type": "function"}]),
    ]
    prompts = TextPrompts(CHUNK)
    keys = [key for ask in asks for key in prompts.prepare(ask, CHAT).keys]
    assert len(set(keys)) == len(keys) > 50


def test_many_salts_do_not_change_a_namespace() -> None:
    prompts = TextPrompts(CHUNK)
    asks = [chat(turns(["High water? " * 30]), cache_salt=str(salt)) for salt in range(3000)]
    first = prompts.prepare(asks[0], CHAT)
    for ask in asks:
        prompts.prepare(ask, CHAT)
    assert prompts.prepare(asks[0], CHAT) == first


@pytest.mark.parametrize("messages", [[], [5], [{"role": "user", "content": [{"type": "image_url"}]}], [[[]]]])
def test_any_messages_do(messages: list[object]) -> None:
    prompt = TextPrompts().prepare(chat(messages), CHAT)
    assert (prompt.keys, prompt.mode, prompt.block_size) == ([], "text", TEXT_BLOCK_TOKENS)


@pytest.mark.parametrize("prompt", [None, [], "", [1, 2, 3], ["a", "b"], 7, {"a": 1}])
def test_any_prompt_does(prompt: object) -> None:
    assert TextPrompts().prepare(completion(prompt), COMPLETIONS).keys == []
