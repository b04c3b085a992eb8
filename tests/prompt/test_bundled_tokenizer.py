"""The bundled tokenizer is what its recipe makes of its corpus, and its template speaks the roles of chat."""

from __future__ import annotations

import pytest

from radix.chat import ChatTemplateError, ChatTokenizer
from replica.tokenizer import corpus, directory
from replica.tokenizer.train import SPECIAL_TOKENS, VOCABULARY, train

TOOL = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}


def test_training_again_gives_the_same_file() -> None:
    assert train(corpus()) == (directory() / "tokenizer.json").read_text(encoding="utf-8")


def test_every_text_survives_the_round_trip(bundled: ChatTokenizer) -> None:
    for text in (corpus(), "naïve 漢字 🌊\r\n\ttabs  and   spaces", ""):
        assert bundled.decode(bundled.encode(text, add_special_tokens=False)) == text


def test_vocabulary_and_ends(bundled: ChatTokenizer) -> None:
    assert bundled.vocab_size == VOCABULARY
    assert [bundled.encode(token, add_special_tokens=False) for token in SPECIAL_TOKENS] == [[0], [1], [2]]
    assert bundled.eos_ids == {2}
    assert bundled.decode([1, *bundled.encode("user", add_special_tokens=False), 2]) == "user"
    assert bundled.decode([2], skip_special_tokens=False) == "<|im_end|>"


def test_the_corpus_is_long_and_varied_enough_for_documents() -> None:
    essays = corpus().split("\n\n")
    assert 40_000 < len(corpus()) < 80_000
    assert len(set(essays)) == len(essays)
    assert corpus().isascii()


def test_a_chat_of_all_roles(bundled: ChatTokenizer) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "tide", "arguments": '{"port": "Brest"}'}}
    text = bundled.render(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "High water?"},
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "tool_call_id": "1", "content": "05:12 <&>"},
        ]
    )
    line = '<call>{"name": "tide", "arguments": {"port": "Brest"}}</call>'
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHigh water?<|im_end|>\n"
        f"<|im_start|>assistant\n{line}\n{line}<|im_end|>\n"
        "<|im_start|>tool\n05:12 <&><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_tools_join_the_system_message_or_make_one(bundled: ChatTokenizer) -> None:
    question = {"role": "user", "content": "High water?"}
    alone = bundled.render([question], tools=[TOOL])
    joined = bundled.render([{"role": "system", "content": "Be brief."}, question], tools=[TOOL])
    shown = '{"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}\n<|im_end|>\n'
    assert alone.startswith("<|im_start|>system\nYou can call")
    assert joined.startswith("<|im_start|>system\nBe brief.\n\nYou can call")
    assert shown in alone
    assert alone.count("<|im_start|>") == joined.count("<|im_start|>") == 3


def test_an_unknown_role_is_refused(bundled: ChatTokenizer) -> None:
    with pytest.raises(ChatTemplateError, match='Unknown role "pirate"'):
        bundled.render([{"role": "pirate", "content": "Arr"}])
