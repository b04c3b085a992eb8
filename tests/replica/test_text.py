"""Streamed text is the decoded text, whole characters at a time, and ends exactly before a stop string."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from itertools import cycle, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radix.chat import ChatTokenizer
from replica import tokenizer as bundled
from replica.text import TextStream


def decode_bytes(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def byte_piece(token: int) -> bytes:
    """A tokenizer with one token for each byte."""
    return bytes([token])


def stream(tokens: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    """The pieces shown after each token and at the end, and whether a stop string ended it."""
    text = TextStream(byte_piece, stop)
    pieces = []
    for token in tokens:
        stopped = text.push(token)
        pieces.append(text.take())
        if stopped:
            return pieces, True
    text.finish()
    return [*pieces, text.take()], False


@given(st.binary(max_size=40))
def test_pieces_join_to_the_decoded_text(data: bytes) -> None:
    pieces, _ = stream(data)
    assert "".join(pieces) == decode_bytes(data)


@given(st.text(max_size=20))
def test_no_character_is_split_and_none_is_late(text: str) -> None:
    data = text.replace("\ufffd", "").encode()
    pieces, _ = stream(data)
    shown = 0
    for end, piece in enumerate(pieces[: len(data)], 1):
        shown += len(piece)
        assert shown == len(data[:end].decode(errors="ignore"))
    assert "\ufffd" not in "".join(pieces)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_string_ends_the_text_before_it_and_holds_no_more_than_it_must(text: str, stops: list[str]) -> None:
    pieces, stopped = stream(text.encode(), stops)
    ends = sorted(text.find(stop) + len(stop) for stop in stops if stop in text)
    if not ends:
        assert not stopped
        assert "".join(pieces) == text
        longest = max(map(len, stops))
        for end in range(1, len(text) + 1):
            assert len("".join(pieces[:end])) >= end - longest + 1
    else:
        assert stopped
        seen = text[: ends[0]]
        assert "".join(pieces) == seen[: min(seen.find(stop) for stop in stops if stop in seen)]


def test_the_bundled_tokenizer_streams_what_it_decodes() -> None:
    tokenizer = ChatTokenizer.load(bundled.directory())

    @given(st.text(max_size=30))
    def streams(text: str) -> None:
        tokens = [2, *tokenizer.encode(text, add_special_tokens=False), 2]  # a special token does not show
        shown = TextStream(tokenizer.pieces.visible)
        pieces = []
        for token in tokens:
            shown.push(token)
            pieces.append(shown.take())
        shown.finish()
        assert "".join([*pieces, shown.take()]) == tokenizer.decode(tokens)

    streams()


WORDS = [
    b"",
    b"the ",
    b"bri",
    b"dge",
    b"\xf0\x9f",
    b"\x8c\x89",
    b"\xe8",
    b"\xaa\x9e\n",
    b"END",
    b"E",
    b"ND\xff",
    b". EN",
]


@given(st.lists(st.integers(0, len(WORDS) - 1), max_size=30))
def test_a_stop_string_may_lie_across_tokens_and_characters_too(tokens: list[int]) -> None:
    shown, stopped = TextStream(WORDS.__getitem__, ["END", "ge🌉"]), False
    for token in tokens:
        if stopped := shown.push(token):
            break
    else:
        shown.finish()
    whole = b"".join(WORDS[token] for token in tokens).decode(errors="replace")
    found = [at for at in (whole.find(stop) for stop in ("END", "ge🌉")) if at >= 0]
    assert stopped == bool(found)
    assert shown.take() == (whole[: min(found)] if found else whole)


@pytest.mark.parametrize("piece", [b"the ", b"\xe8\xaa\x9e", b"\xff", b"\xf0", b"E"])
def test_a_long_answer_keeps_no_more_than_a_short_one(piece: bytes) -> None:
    looked_at = 0

    def look(token: int) -> bytes:
        nonlocal looked_at
        looked_at += 1
        return piece[token : token + 1]

    text = TextStream(look, ["END", "ENDING"])
    tracemalloc.start()
    for token in islice(cycle(range(len(piece))), 5_000):
        text.push(token)
        text.take()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert looked_at == 5_000, "each token once"
    assert grown < 10_000
