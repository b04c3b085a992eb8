"""A text may be cut wherever CutPoints says, and nowhere does a tokenizer of doubtful kind get cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from radix.cut_points import CutPoints
from tests.prompt.models import LLAMA_SPECIAL, SPECIAL, every_kind

KINDS = sorted(every_kind())
TOKENS = (*SPECIAL, *LLAMA_SPECIAL, "<mask>", "<|end|>", "<|", "|><|im", "bridge<", "tide")
FRAGMENTS = (
    "x|><|im_start|>",
    "<|im_",
    "im_start|>",
    "|>",
    "<",
    ">",
    "</",
    "s>",
    "<<s>>",
    "user\n",
    "assistant\n",
    "'s",
    "'LL",
    "I've",
)
SPACES = (" ", "  ", "   ", "\n", "\n\n", " \n", "\r\n", "\t", "\u00a0", "\u3000")
WORDS = ("bridge", "The", "a", "arch", "tide", "e\u0301", "\u0301", "é", "漢字", "🌊", "123", "4", "...", "-", "ﬁ", "x")

token = st.sampled_from(TOKENS)
word = st.sampled_from(WORDS)
space = st.sampled_from(SPACES)
piece = st.one_of(token, token, word, word, space, st.sampled_from(FRAGMENTS), st.text("a \n<|>", max_size=4))
texts = st.lists(piece, min_size=2, max_size=40).map("".join)
distances = st.sampled_from([1, 1, 1, 2, 5, 30])


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    description: dict[str, Any] = json.loads(tokenizer.to_str())
    return description


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    encoded: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return encoded


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=250)
@given(text=texts, apart=distances, stride=st.integers(1, 12))
def test_the_tokens_of_the_pieces_are_the_tokens_of_the_whole(kind: str, text: str, apart: int, stride: int) -> None:
    tokenizer = every_kind()[kind]
    cuts = CutPoints(describe(tokenizer), word_stride=stride).find(text, apart)
    edges = [0, *cuts, len(text)]
    assert all(stop - start >= apart for start, stop in pairwise(edges[:-1]))
    assert all(0 < cut < len(text) for cut in cuts)
    whole = ids(tokenizer, text)
    assert [token for start, stop in pairwise(edges) for token in ids(tokenizer, text[start:stop])] == whole
    for cut in cuts:
        assert ids(tokenizer, text[:cut]) + ids(tokenizer, text[cut:]) == whole


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(common=texts, one=texts, other=texts, apart=distances)
def test_texts_with_a_common_prefix_have_common_cuts(kind: str, common: str, one: str, other: str, apart: int) -> None:
    finder = CutPoints(describe(every_kind()[kind]), word_stride=8)
    # What a token at the very end of the common part turns into is only seen behind it.
    safe = len(common) - max(map(len, TOKENS))
    first = [cut for cut in finder.find(common + one, apart) if cut < safe]
    assert first == [cut for cut in finder.find(common + other, apart) if cut < safe]


CHAT = "<s><|im_start|>user\nWhat holds an arch?<|im_end|>\n</s><|im_start|>assistant\n"


@pytest.mark.parametrize(("kind", "before", "after"), [
    ("gpt2", {"<|im_start|>", "<|im_end|>"}, {"<|im_start|>", "<|im_end|>"}),
    ("qwen", {"<|im_start|>", "<|im_end|>"}, {"<|im_start|>", "<|im_end|>"}),
    ("llama_legacy", {"</s>"}, {"<s>", "</s>"}),
    ("metaspace_first", {"</s>"}, set()),
    ("metaspace_always", {"</s>"}, {"<s>", "</s>"}),
])  # fmt: skip
def test_chats_are_cut_around_their_special_tokens(kind: str, before: set[str], after: set[str]) -> None:
    cuts = CutPoints(describe(every_kind()[kind])).find(CHAT)
    expected = {at for token in before for at in range(1, len(CHAT)) if CHAT.startswith(token, at)}
    expected |= {at for token in after for at in range(1, len(CHAT)) if CHAT.endswith(token, 0, at)}
    assert cuts == sorted(expected)


def test_long_text_without_special_tokens_is_cut_at_words_of_byte_level_tokenizers() -> None:
    text = "The tide turns twice a day and the boats turn with it.\n" * 200
    for kind in ("gpt2", "qwen"):
        cuts = CutPoints(describe(every_kind()[kind])).find(text)
        assert all(text[cut - 1].isalpha() and text[cut].isspace() for cut in cuts)
        assert len(text) // 2300 <= len(cuts) <= len(text) // 2048
    assert not CutPoints(describe(every_kind()["metaspace_always"])).find(text)


def test_a_wordless_text_is_scanned_once() -> None:
    finder = CutPoints(describe(every_kind()["gpt2"]))
    assert finder.find("漢" * 100_000 + "<|im_end|>x") == [100_000, 100_010]


def test_only_tokens_that_prompts_use_are_looked_for() -> None:
    finder = CutPoints(describe(every_kind()["gpt2"]), prefer=["{{ '<|im_start|>' }}"])
    assert finder.find("a<|im_end|>b<|im_start|>c") == [12, 24]


def test_tokens_that_swallow_spaces_or_overlap_others_are_no_place_to_cut() -> None:
    finder = CutPoints(describe(every_kind()["roberta"]))
    assert finder.find("a <mask> b") == [8]
    assert finder.find("a <|end|> b") == [2]
    assert finder.find("a<|endoftext|>b<|im_end|>c") == [1, 14]  # but not at a token that "|><|im" may run into


@pytest.mark.parametrize("change", [
    {"model": {"type": "BPE", "dropout": 0.1}},
    {"pre_tokenizer": {"type": "SomethingNew"}},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "SomethingNew"}]}},
    {"normalizer": {"type": "SomethingNew"}},
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a-z ]+"}, "behavior": "Isolated"}, "added_tokens": []},
    {"added_tokens": [{"content": "<|im_end|>", "single_word": True, "normalized": False}]},
    {"added_tokens": [{"content": "<|im_end|>", "single_word": False, "normalized": True, "lstrip": False,
                       "rstrip": False}]},
    {"added_tokens": []},
])  # fmt: skip
def test_what_is_not_known_to_be_safe_is_not_cut(change: dict[str, Any]) -> None:
    description = {**describe(every_kind()["roberta"]), **change}
    assert CutPoints(description, word_stride=4).find("one two <|im_end|> three " * 20) == []


def test_a_cut_behind_a_token_would_be_wrong_where_only_the_start_of_a_text_is_marked() -> None:
    tokenizer = every_kind()["metaspace_first"]
    assert ids(tokenizer, "<s>tide") != ids(tokenizer, "<s>") + ids(tokenizer, "tide")
