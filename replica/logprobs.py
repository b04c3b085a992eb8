"""Log probabilities as clients get them: OpenAI's form for chats, and its older one for completions.

Owns these two forms. Every token of an answer has an entry, also one that shows nothing, such as the one that ended it.
A token that is part of a character has no text of its own: it goes by its bytes, written with escapes.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from radix.pieces import TokenPieces
from replica.sampling_params import TokenLogprobs

# What stands for minus infinity, which JSON does not have.
LOWEST = -9999.0


def for_chat(tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], pieces: TokenPieces) -> dict[str, Any]:
    """The `logprobs` of a chat's choice, or of a part of it."""
    content = [
        _entry(token, found.chosen, pieces)
        | {"top_logprobs": [_entry(other, logprob, pieces) for other, logprob in found.top]}
        for token, found in zip(tokens, logprobs, strict=True)
    ]
    return {"content": content, "refusal": None}


class ForCompletion:
    """The `logprobs` of one answer to a completion, part after part: where a token's text begins depends on all before.

    Among a token's likeliest is always the token itself, as the last one if it was not likely enough.
    """

    def __init__(self, pieces: TokenPieces) -> None:
        self._pieces = pieces
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def part(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> dict[str, list[Any]]:
        """The next tokens, with offsets in characters from the beginning of the answer."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._characters.decode(self._pieces.visible(token)))
        return {
            "tokens": [self._name(token) for token in tokens],
            "token_logprobs": [max(found.chosen, LOWEST) for found in logprobs],
            "top_logprobs": [self._top(token, found) for token, found in zip(tokens, logprobs, strict=True)],
            "text_offset": offsets,
        }

    def _top(self, token: int, found: TokenLogprobs) -> dict[str, float]:
        top: dict[str, float] = {}
        for other, logprob in (*found.top, (token, found.chosen)):
            top.setdefault(self._name(other), max(logprob, LOWEST))
        return top

    def _name(self, token: int) -> str:
        piece = self._pieces(token)
        name = _name(piece)
        return name if name.encode() == piece else f"bytes:{name}"


def _entry(token: int, logprob: float, pieces: TokenPieces) -> dict[str, Any]:
    piece = pieces(token)
    return {"token": _name(piece), "logprob": max(logprob, LOWEST), "bytes": list(piece)}


def _name(piece: bytes) -> str:
    """The text, or the bytes as \\xNN where they are none."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in piece)
