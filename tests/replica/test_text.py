"""Streamed text is the decoded text, whole characters at a time, and ends exactly before a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from radix.chat import ChatTokenizer
from replica import tokenizer as bundled
from replica.text import TextStream


def decode_bytes(tokens: Sequence[int]) -> str:
    """A tokenizer with one token for each byte."""
    return bytes(tokens).decode(errors="replace")


def stream(tokens: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    """The pieces shown after each token and at the end, and whether a stop string ended it."""
    text = TextStream(decode_bytes, stop)
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
        tokens = tokenizer.encode(text, add_special_tokens=False)
        shown = TextStream(tokenizer.decode)
        pieces = []
        for token in tokens:
            shown.push(token)
            pieces.append(shown.take())
        shown.finish()
        assert "".join([*pieces, shown.take()]) == tokenizer.decode(tokens)

    streams()
