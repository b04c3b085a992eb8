"""The pieces of a text's tokens, joined, are the text: in every kind of tokenizer, whatever the characters."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from radix.pieces import TokenPieces
from tests.prompt.models import every_kind

texts = st.lists(
    st.sampled_from(["the bridge ", " and", "  ", "é", "語", "🌉", "\n", "x", "�", "\x00", "1"]), max_size=12
)


def pieces_of(tokenizer: Tokenizer) -> TokenPieces:
    return TokenPieces(tokenizer, json.loads(tokenizer.to_str()))


@pytest.mark.parametrize("kind", every_kind())
def test_joined_pieces_are_the_decoded_text(kind: str) -> None:
    tokenizer = every_kind()[kind]
    pieces = pieces_of(tokenizer)

    @settings(max_examples=60, deadline=None)
    @given(texts)
    def joins(parts: list[str]) -> None:
        # After other text, as an answer is: at the very beginning some decoders drop a space.
        before, ids = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("a", "".join(parts)))
        decoded = tokenizer.decode(before + ids, skip_special_tokens=False)
        head = b"".join(map(pieces, before)).decode()
        joined = b"".join(map(pieces, before + ids)).decode(errors="replace")
        assert joined.startswith(head)
        assert joined.lstrip(" ") == decoded.lstrip(" ")

    joins()


@pytest.mark.parametrize("kind", every_kind())
def test_every_token_has_a_piece_and_those_that_no_tokenizer_knows_are_nothing(kind: str) -> None:
    tokenizer = every_kind()[kind]
    pieces = pieces_of(tokenizer)
    assert all(pieces(token) for token in range(tokenizer.get_vocab_size()))
    assert pieces(tokenizer.get_vocab_size() + 7) == b""


def test_special_tokens_have_names_but_are_not_to_be_seen() -> None:
    tokenizer = every_kind()["gpt2"]
    pieces = pieces_of(tokenizer)
    ends = tokenizer.token_to_id("<|im_end|>")
    assert ends is not None
    assert (pieces(ends), pieces.visible(ends)) == (b"<|im_end|>", b"")
    assert pieces.visible(ends + 1) == pieces(ends + 1)


def byte_fallback() -> Tokenizer:
    """SentencePiece's kind, with a token for each byte of the characters it does not know."""
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    tokenizer = Tokenizer(
        models.BPE(
            {token: at for at, token in enumerate(vocabulary)}, [("▁", "a")], unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


@pytest.mark.parametrize("tokenizer", [every_kind()["gpt2"], byte_fallback()])
def test_characters_come_apart_into_their_bytes(tokenizer: Tokenizer) -> None:
    pieces = pieces_of(tokenizer)
    text = "a a語🌉語"
    found = [pieces(token) for token in tokenizer.encode(text, add_special_tokens=False).ids]
    assert b"".join(found) == text.encode()
    assert pieces(tokenizer.encode("🌉", add_special_tokens=False).ids[0]) in (b"\xf0", b"\xf0\x9f", b"\xf0\x9f\x8c")


def test_decoders_of_other_kinds_are_asked_for_each_token() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "bridge": 1, "##s": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    pieces = pieces_of(tokenizer)
    assert pieces(1) == b"bridge"
    without = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    assert b"".join(map(pieces_of(without), [0, 1])).strip() == without.decode([0, 1]).encode()
