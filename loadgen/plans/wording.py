"""The words of a piece: its content's number, then words drawn by seed and number alone.

Owns what a piece says, as text and as token ids, and keeps what was asked for last. Must never let two contents say the
same: the number comes first, its lowest digit in front, so that numbers near each other differ from the first word on,
and any two within the first `CODE_WORDS`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import shake_128
from random import Random
from typing import Generic, TypeVar

from loadgen.plans.vocabulary import Vocabulary

CODE_WORDS = 4
KEPT_TOKENS = 4_000_000
"""Of pieces' texts, and as many of their ids: some 25 and 32 MB."""
_DRAWN_WORDS = 256  # a byte of the digest picks one


T = TypeVar("T")


class Wording:
    """What contents say under one seed. Another seed says all of it in other words."""

    def __init__(self, vocabulary: Vocabulary, seed: int, kept_tokens: int = KEPT_TOKENS) -> None:
        order = list(range(len(vocabulary.words)))
        Random(f"words {seed}").shuffle(order)
        self._seed = seed
        self._words = [vocabulary.words[index] for index in order]
        self._ids = [vocabulary.ids[index] for index in order]
        self._texts: _Kept[str] = _Kept(self._make_text, kept_tokens)
        self._lists: _Kept[list[int]] = _Kept(self._make_ids, kept_tokens)

    def text(self, content: int, tokens: int) -> str:
        """`tokens` words, each with a space before it. Raises ValueError for a content number out of range."""
        return self._texts.get(content, tokens)

    def ids(self, content: int, tokens: int) -> Sequence[int]:
        """The ids of `text(content, tokens)`; not to be changed."""
        return self._lists.get(content, tokens)

    @property
    def kept_tokens(self) -> int:
        """Tokens of all the pieces that are kept, as text or as ids."""
        return self._texts.tokens + self._lists.tokens

    def _make_text(self, content: int, tokens: int) -> str:
        return "".join(map(self._words.__getitem__, self._indices(content, tokens)))

    def _make_ids(self, content: int, tokens: int) -> list[int]:
        return list(map(self._ids.__getitem__, self._indices(content, tokens)))

    def _indices(self, content: int, tokens: int) -> Sequence[int]:
        """Places in the list of words. A digest's beginning is that of any longer one: hence prefixes are prefixes."""
        code = self._code(content)
        if tokens <= CODE_WORDS:
            return code[:tokens]
        return [*code, *shake_128(f"{self._seed} {content}".encode()).digest(tokens - CODE_WORDS)]

    def _code(self, content: int) -> list[int]:
        """The number's digits to the base of how many words there are; numbers below 0 count back from the largest."""
        base = len(self._words)
        limit = base**CODE_WORDS // 2
        if not -limit <= content < limit:
            raise ValueError(f"content {content} has no words: numbers go from {-limit} to {limit - 1}")
        digits = []
        for _ in range(CODE_WORDS):
            content, digit = divmod(content, base)  # rounds down, also below 0
            digits.append(digit)
        return digits


class _Kept(Generic[T]):
    """Values by (content, tokens), of `room` tokens at most; those not asked for longest go first."""

    def __init__(self, make: Callable[[int, int], T], room: int) -> None:
        self.tokens = 0
        self._make = make
        self._room = room
        self._values: OrderedDict[tuple[int, int], T] = OrderedDict()

    def get(self, content: int, tokens: int) -> T:
        key = (content, tokens)
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
            return value
        value = self._values[key] = self._make(content, tokens)
        self.tokens += tokens
        while self.tokens > self._room:
            (_, freed), _ = self._values.popitem(last=False)
            self.tokens -= freed
        return value
