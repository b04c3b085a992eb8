"""What a token stands for, in bytes: half a character, a word with the space before it, the name of a special token.

Owns the reading of tokenizer.json's decoder, one token at a time, so that text can be put together without decoding
anything twice. Must never look at neighbours: what a decoder does at the beginning of a text (drop a space) is left
out, for an answer is never the beginning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

Turn = Callable[[str], str | bytes]
"""A decoder's step. Bytes are final."""


class TokenPieces:
    """Callable: token id -> bytes. `visible` is the same, but special tokens are nothing, as in an answer's text.

    The pieces of a text's tokens, joined, are the text. `description` is tokenizer.json, decoded. Decoders of other
    kinds than byte-level BPE's and SentencePiece's are asked for each token alone, which may lose spaces.
    """

    def __init__(self, tokenizer: Tokenizer, description: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._turns = _turns(description.get("decoder"))
        added = description.get("added_tokens") or ()
        self._special = frozenset(token["id"] for token in added if token.get("special"))
        self._known: dict[int, bytes] = {}

    def __call__(self, token: int) -> bytes:
        piece = self._known.get(token)
        if piece is None:
            piece = self._known[token] = self._find(token)
        return piece

    def visible(self, token: int) -> bytes:
        return b"" if token in self._special else self(token)

    def _find(self, token: int) -> bytes:
        piece: str | bytes | None = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""  # models have room for more tokens than their tokenizers know
        if self._turns is None:
            piece = str(self._tokenizer.decode([token], skip_special_tokens=False))
        else:
            for turn in self._turns:
                if isinstance(piece, str):
                    piece = turn(piece)
        return piece.encode() if isinstance(piece, str) else piece


def _turns(decoder: Mapping[str, Any] | None) -> list[Turn] | None:
    """The steps of a decoder; None for one that is not understood."""
    if decoder is None:
        return [lambda piece: " " + piece]
    kind = decoder.get("type")
    if kind == "Sequence":
        parts = [_turns(part) for part in decoder.get("decoders") or ()]
        turns = [turn for part in parts for turn in part or ()]
        return None if None in parts else turns
    if kind == "ByteLevel":
        return [_from_byte_level]
    if kind == "ByteFallback":
        return [_from_byte_name]
    if kind == "Metaspace":
        return [_replacing(decoder.get("replacement", "▁"), " ")]
    if kind == "Replace" and "String" in decoder.get("pattern", {}):
        return [_replacing(decoder["pattern"]["String"], decoder.get("content", ""))]
    if kind in ("Fuse", "Strip"):
        return []  # they join pieces, and look at the ends of the text
    return None


def _replacing(old: str, new: str) -> Turn:
    return lambda piece: piece.replace(old, new)


def _from_byte_name(piece: str) -> str | bytes:
    named = _BYTE.fullmatch(piece)
    return bytes.fromhex(named[1]) if named else piece


def _from_byte_level(piece: str) -> str | bytes:
    try:
        return bytes(map(_BYTES.__getitem__, piece))
    except KeyError:
        return piece  # an added token with other characters stands for itself


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable characters for all bytes: the printable ones of Latin-1 themselves, the others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_alphabet()
