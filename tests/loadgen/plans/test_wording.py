"""What contents say: never the same, prefixes where they are shorter, and equal in every process."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loadgen.plans.vocabulary import read_vocabulary
from loadgen.plans.wording import CODE_WORDS, Wording
from replica import tokenizer

VOCABULARY = read_vocabulary(tokenizer.directory())
WORDS = len(VOCABULARY.words)
LIMIT = WORDS**CODE_WORDS // 2
contents = st.integers(-LIMIT, LIMIT - 1)


@settings(deadline=None)
@given(contents, contents)
@example(0, WORDS)
@example(-1, LIMIT - 1)
@example(-LIMIT, LIMIT - 1)
def test_two_contents_differ_within_their_first_words(content: int, other: int) -> None:
    wording = Wording(VOCABULARY, 1)
    alike = wording.ids(content, CODE_WORDS) == wording.ids(other, CODE_WORDS)
    assert alike == (content == other)


@settings(deadline=None)
@given(contents, st.integers(1, WORDS - 1))
def test_contents_near_each_other_differ_from_the_first_word_on(content: int, apart: int) -> None:
    wording = Wording(VOCABULARY, 1)
    other = content + apart if content + apart < LIMIT else content - apart
    assert wording.ids(content, 1) != wording.ids(other, 1)


@settings(deadline=None)
@given(contents, st.integers(1, 300), st.integers(1, 300), st.integers(0, 9))
def test_a_shorter_piece_is_a_prefix_of_a_longer_one(content: int, tokens: int, more: int, seed: int) -> None:
    wording = Wording(VOCABULARY, seed)
    short, long = wording.text(content, tokens), wording.text(content, tokens + more)
    assert long.startswith(short + " ")
    assert short.count(" ") == len(wording.ids(content, tokens)) == tokens
    assert wording.ids(content, tokens + more)[:tokens] == wording.ids(content, tokens)


def test_text_and_ids_say_the_same() -> None:
    wording = Wording(VOCABULARY, 5)
    by_word = dict(zip(VOCABULARY.words, VOCABULARY.ids, strict=True))
    assert [by_word[" " + word] for word in wording.text(7, 900).split()] == wording.ids(7, 900)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 60)), max_size=60), st.integers(0, 150))
def test_what_is_forgotten_is_said_again_in_the_same_words(asked: list[tuple[int, int]], kept: int) -> None:
    bounded, unbounded = Wording(VOCABULARY, 1, kept), Wording(VOCABULARY, 1)
    for content, tokens in asked:
        assert bounded.text(content, tokens) == unbounded.text(content, tokens)
        assert bounded.ids(content, tokens) == unbounded.ids(content, tokens)
        assert bounded.kept_tokens <= 2 * kept


def test_what_was_asked_for_last_is_kept() -> None:
    wording = Wording(VOCABULARY, 1, 100)
    first = wording.text(1, 50)
    wording.text(2, 50)
    assert wording.text(1, 50) is first
    wording.text(3, 50)
    assert wording.text(1, 50) is first
    assert wording.kept_tokens == 100


def test_another_seed_uses_other_words() -> None:
    assert Wording(VOCABULARY, 1).text(0, 1) != Wording(VOCABULARY, 2).text(0, 1)


def test_another_process_says_the_same() -> None:
    code = (
        "from loadgen.plans.vocabulary import read_vocabulary; from loadgen.plans.wording import Wording;"
        "from replica import tokenizer;"
        "print(Wording(read_vocabulary(tokenizer.directory()), 3).text(123456, 200))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.rstrip("\n") == Wording(VOCABULARY, 3).text(123456, 200)


@pytest.mark.parametrize("content", [LIMIT, -LIMIT - 1])
def test_a_number_without_words_is_refused(content: int) -> None:
    with pytest.raises(ValueError, match=f"content {content} has no words: numbers go from"):
        Wording(VOCABULARY, 1).text(content, 10)
