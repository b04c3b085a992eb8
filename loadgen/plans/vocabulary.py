"""Words that are one token each, whatever stands beside them: what the text of every piece is made of.

Owns the choice of words from a byte-level BPE tokenizer.json, read as plain JSON. Must never take a word on trust: each
is put through the merges, since an entry of the vocabulary need not be what its own text becomes.

A word is a space and lower-case ASCII letters. Every such tokenizer cuts text before a space that letters follow, also
after a special token or the newline that ends a message's role; so n words in a row are n tokens.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import msgspec

MOST_WORDS = 2048
FEWEST_WORDS = 256
_SPACE = "Ġ"  # how byte-level vocabularies write the byte of a space
_WORD = re.compile(_SPACE + "[a-z]{2,12}")


class Vocabulary(msgspec.Struct, frozen=True):
    """Words with their leading space, and their token ids; the likeliest of the tokenizer's training text first."""

    words: tuple[str, ...]
    ids: tuple[int, ...]


class _Model(msgspec.Struct):
    type: str
    vocab: dict[str, int]
    merges: list[str | tuple[str, str]]
    ignore_merges: bool = False


class _File(msgspec.Struct):
    model: _Model


def read_vocabulary(directory: Path) -> Vocabulary:
    """Of the tokenizer.json in `directory`. Raises ValueError when there is none, or not one of the right kind."""
    path = directory / "tokenizer.json"
    try:
        read = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is no BPE tokenizer whose words are known: {error}; use token ids") from None
    words = _single_words(read.model)[:MOST_WORDS]
    if read.model.type != "BPE" or len(words) < FEWEST_WORDS:
        raise ValueError(
            f"{path}: text is made of words that are one token each, and of those it has {len(words)}, not "
            f"{FEWEST_WORDS} or more; use a byte-level BPE tokenizer, or token ids"
        )
    ids = tuple(read.model.vocab[word] for word in words)
    return Vocabulary(tuple(" " + word[len(_SPACE) :] for word in words), ids)


def _single_words(model: _Model) -> list[str]:
    """Entries that are words, by rising id, as far as their text becomes that one token."""
    candidates = sorted((word for word in model.vocab if _WORD.fullmatch(word)), key=model.vocab.__getitem__)
    if model.ignore_merges:  # a word that is an entry is taken whole
        return candidates
    ranks: dict[tuple[str, str], int] = {}
    for rank, merge in enumerate(model.merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks[left, right] = rank
    chosen: list[str] = []
    for word in candidates:
        if len(_merged(word, ranks)) == 1:
            chosen.append(word)
        if len(chosen) == MOST_WORDS:
            break
    return chosen


def _merged(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding: the pair that was learned first is merged first, the leftmost of equal ones."""
    parts = list(word)
    while len(parts) > 1:
        pairs = list(pairwise(parts))
        at = min(range(len(pairs)), key=lambda index: ranks.get(pairs[index], len(ranks)))
        if pairs[at] not in ranks:
            break
        parts[at : at + 2] = ["".join(pairs[at])]
    return parts
