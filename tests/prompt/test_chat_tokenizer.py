"""Model directories load as Hugging Face lays them out, and say clearly what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from radix.chat import ChatTemplateError, ChatTokenizer, TokenizerError, render_options
from tests.prompt.models import TEMPLATE, every_kind, save

HELLO = [{"role": "user", "content": "Hello"}]


def load(path: Path, kind: str = "gpt2", **config: Any) -> ChatTokenizer:
    return ChatTokenizer.load(save(every_kind()[kind], path, **config))


def test_special_tokens_come_as_text_or_as_objects(tmp_path: Path) -> None:
    bos = {"content": "<|endoftext|>", "lstrip": False, "special": True}
    tokenizer = load(tmp_path, chat_template=TEMPLATE, bos_token=bos, eos_token="<|im_end|>", pad_token=None)
    assert tokenizer.render(HELLO).startswith("<|endoftext|><|im_start|>user\nHello")
    assert tokenizer.eos_ids == {2}


@pytest.mark.parametrize(("listed", "expected"), [(0, {0, 2}), ([0, 1], {0, 1, 2}), (None, {2})])
def test_the_generation_configuration_adds_ends(tmp_path: Path, listed: Any, expected: set[int]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    assert load(tmp_path, eos_token="<|im_end|>").eos_ids == expected


def test_a_template_file_goes_before_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert load(tmp_path, chat_template="from the configuration").render(HELLO) == "from the file"


def test_named_templates_are_chosen_by_need(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    tokenizer = load(tmp_path, chat_template=named)
    assert tokenizer.render(HELLO) == "plain"
    assert tokenizer.render(HELLO, tools=[]) == "plain"
    assert tokenizer.render(HELLO, tools=[{"type": "function"}]) == "with tools"
    with pytest.raises(ChatTemplateError, match="default"):
        load(tmp_path, chat_template=named[1:]).render(HELLO)


def test_without_a_template_only_chats_fail(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("Hello", add_special_tokens=True)) == "Hello"
    with pytest.raises(ChatTemplateError, match="no chat template"):
        tokenizer.encode_chat(HELLO)


def test_special_tokens_are_added_only_where_asked_for(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "llama_legacy", chat_template=TEMPLATE, bos_token="<s>")
    assert tokenizer.affixes == ([1], [])
    assert tokenizer.encode("Hello", add_special_tokens=True) == [
        1,
        *tokenizer.encode("Hello", add_special_tokens=False),
    ]
    assert tokenizer.encode_chat(HELLO).count(1) == 1  # the template's own
    assert tokenizer.encode_chat(HELLO, add_special_tokens=True).count(1) == 2


def test_limits_left_in_the_file_do_not_cut_prompts(tmp_path: Path) -> None:
    save(every_kind()["gpt2"], tmp_path)
    path = tmp_path / "tokenizer.json"
    description = json.loads(path.read_text())
    description["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(description))
    tokenizer = ChatTokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("The tide turns twice a day.", add_special_tokens=False)).endswith("day.")


def test_few_and_many_pieces_are_encoded_alike(bundled: ChatTokenizer) -> None:
    pieces = ["The tide turns", " twice a day", ""]
    each = [bundled.encode(piece, add_special_tokens=False) for piece in pieces]
    assert bundled.encode_pieces(pieces) == each
    assert bundled.encode_pieces(pieces * 1000) == each * 1000


def test_fingerprints_name_the_content_that_decides_tokens(tmp_path: Path) -> None:
    first = load(tmp_path / "a", eos_token="<|im_end|>").fingerprint
    assert load(tmp_path / "b", eos_token="<|im_end|>").fingerprint == first
    (tmp_path / "b" / "README.md").write_text("about")
    assert ChatTokenizer.load(tmp_path / "b").fingerprint == first
    (tmp_path / "b" / "chat_template.jinja").write_text("x")
    assert ChatTokenizer.load(tmp_path / "b").fingerprint != first
    assert load(tmp_path / "a", "qwen", eos_token="<|im_end|>").fingerprint != first


@pytest.mark.parametrize(("name", "content", "complaint"), [
    ("tokenizer.json", None, "tokenizer.json is missing"),
    ("tokenizer.json", "{", "cannot be read as JSON"),
    ("tokenizer.json", "[]", "must hold a JSON object"),
    ("tokenizer.json", "{}", "is not a tokenizer"),
    ("tokenizer_config.json", "{", "cannot be read as JSON"),
    ("tokenizer_config.json", '{"chat_template": 5}', "must be a string or a list"),
    ("tokenizer_config.json", '{"chat_template": "{% if %}"}', "not valid Jinja"),
    ("generation_config.json", "nope", "cannot be read as JSON"),
])  # fmt: skip
def test_broken_directories_say_what_is_wrong(tmp_path: Path, name: str, content: str | None, complaint: str) -> None:
    save(every_kind()["gpt2"], tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=complaint):
        ChatTokenizer.load(tmp_path)


def test_a_lone_surrogate_has_no_tokens(bundled: ChatTokenizer) -> None:
    with pytest.raises(UnicodeEncodeError):
        bundled.encode("a\ud800", add_special_tokens=False)


def test_request_fields_become_render_options() -> None:
    plain = {"tools": None, "add_generation_prompt": True, "continue_final_message": False}
    assert render_options(None, None, None, None) == plain
    assert render_options(None, None, True, {}) == {
        **plain,
        "add_generation_prompt": False,
        "continue_final_message": True,
    }
    assert render_options([], False, None, {"tools": [1], "thinking": True}) == {
        "tools": [1], "add_generation_prompt": False, "continue_final_message": False, "thinking": True,
    }  # fmt: skip
