"""Vocabularies: every word is one token of its tokenizer, whatever stands beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from loadgen.plans.vocabulary import FEWEST_WORDS, read_vocabulary
from replica import tokenizer

FILE = tokenizer.directory() / "tokenizer.json"
VOCABULARY = read_vocabulary(tokenizer.directory())
REAL = Tokenizer.from_file(str(FILE))


def encode(text: str) -> list[int]:
    ids: list[int] = REAL.encode(text, add_special_tokens=False).ids
    return ids


def changed(folder: Path, **fields: Any) -> Path:
    """A directory with the bundled tokenizer.json, its model changed."""
    read = json.loads(FILE.read_text(encoding="utf-8"))
    read["model"] |= fields
    (folder / "tokenizer.json").write_text(json.dumps(read), encoding="utf-8")
    return folder


def test_every_word_alone_is_its_one_token() -> None:
    assert len(VOCABULARY.words) == len(VOCABULARY.ids) == len(set(VOCABULARY.ids)) > 1000
    for word, token in zip(VOCABULARY.words, VOCABULARY.ids, strict=True):
        assert encode(word) == [token]


@settings(deadline=None)
@given(st.lists(st.integers(0, len(VOCABULARY.words) - 1), min_size=1, max_size=60), st.data())
def test_words_in_any_order_are_their_tokens_at_every_cut(indices: list[int], data: st.DataObject) -> None:
    ids = [VOCABULARY.ids[index] for index in indices]
    cut = data.draw(st.integers(0, len(ids)))
    text = "".join(VOCABULARY.words[index] for index in indices[:cut])
    assert encode(text) == ids[:cut]


@pytest.mark.parametrize("before", ["<|im_start|>user\n", "<|im_end|>", "\n", "<|im_end|>\n<|im_start|>tool\n"])
@pytest.mark.parametrize("after", ["<|im_end|>\n", "", "\n", "<|endoftext|>"])
def test_words_stay_their_tokens_between_a_template_s_parts(before: str, after: str) -> None:
    text = "".join(VOCABULARY.words)
    assert encode(before + text + after) == encode(before) + list(VOCABULARY.ids) + encode(after)


def test_an_entry_that_its_own_text_does_not_become_is_no_word(tmp_path: Path) -> None:
    read = json.loads(FILE.read_text(encoding="utf-8"))["model"]
    orphan = read["vocab"] | {"Ġqzx": 9999}
    words = read_vocabulary(changed(tmp_path, vocab=orphan)).words
    assert " qzx" not in words
    assert words == VOCABULARY.words


def test_merges_written_as_strings_are_read_too(tmp_path: Path) -> None:
    merges = json.loads(FILE.read_text(encoding="utf-8"))["model"]["merges"]
    assert read_vocabulary(changed(tmp_path, merges=[" ".join(merge) for merge in merges])) == VOCABULARY


def test_a_tokenizer_that_takes_entries_whole_needs_no_merges(tmp_path: Path) -> None:
    words = read_vocabulary(changed(tmp_path, merges=[], ignore_merges=True)).words
    assert set(VOCABULARY.words) <= set(words)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read: No such file"):
        read_vocabulary(tmp_path)
    with pytest.raises(ValueError, match=f"it has 0, not {FEWEST_WORDS} or more"):
        read_vocabulary(changed(tmp_path, vocab={"▁the": 1}))
    with pytest.raises(ValueError, match="byte-level BPE"):
        read_vocabulary(changed(tmp_path, type="WordPiece"))
    with pytest.raises(ValueError, match="use token ids"):
        read_vocabulary(changed(tmp_path, vocab=[["▁the", -1.0]]))
