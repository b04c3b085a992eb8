"""Where a text may be cut so that tokenizing the pieces gives exactly the tokens of the whole.

Owns the proof, drawn from tokenizer.json, that a cut is safe. Must never hand out a doubtful cut: a wrong one makes
wrong block keys, a missing one only costs time. Whatever is not known to be safe gives no cuts at all.

Why cuts at added tokens are exact: a tokenizer first splits the raw text at its added tokens (leftmost, longest), then
normalizes, pre-tokenizes and merges each piece between them by itself. Hence the pieces are the same whether the text
before and after an added token is tokenized at once or apart, as long as the token does not swallow spaces around it,
no other token can overlap it, and no step treats the first piece of a text specially.

Why cuts between an ASCII letter and a space or a line break are exact for the usual byte-level patterns: no alternative
of these patterns matches a letter followed by white space, and none looks back. So one pre-token always ends there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Steps that work on each piece by itself.
_COMPOSING = frozenset({"NFC", "NFD", "NFKC", "NFKD"})
_LOCAL_NORMALIZERS = _COMPOSING | {"Lowercase", "Nmt", "Precompiled", "Prepend", "Replace", "Strip", "StripAccents"}
_LOCAL_PRE_TOKENIZERS = frozenset({"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "Whitespace"})

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The splitting patterns of Qwen 2 and of Llama 3, which differ in how many digits make a piece.
_WORD_PATTERNS = frozenset(
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + _REST for digits in (r"\p{N}", r"\p{N}{1,3}")
)

# Tokens looked for in a text, at most.
_MAX_TOKENS = 16
WORD_STRIDE = 2048
# How far behind the stride a word may end.
_WORD_WINDOW = 256
_WORD_END = re.compile(r"[A-Za-z](?=[ \n])")


class CutPoints:
    """Finds safe cuts for one tokenizer.

    `description` is tokenizer.json, decoded. `prefer` are texts (the chat template, the names of special tokens) in
    which the added tokens occur that prompts really use; scanning for hundreds of reserved ones would be slow. Where
    text runs on without such tokens, a cut comes after about `word_stride` characters, if words can be cut at all.
    """

    def __init__(
        self, description: Mapping[str, Any], prefer: Iterable[str] = (), word_stride: int = WORD_STRIDE
    ) -> None:
        added = [token for token in description.get("added_tokens") or () if isinstance(token, Mapping)]
        before, after = _token_cuts(description, added)
        used = _preferred(before | after, list(prefer))
        self._before = frozenset(before & used)
        self._after = frozenset(after & used)
        self._longest = max(map(len, used), default=0)
        self._tokens = re.compile("|".join(map(re.escape, sorted(used, key=len, reverse=True)))) if used else None
        self._word_stride = word_stride
        self._words = _allows_word_cuts(description, added)

    def find(self, text: str, apart: int = 1) -> list[int]:
        """Rising offsets in characters, without 0 and the end, at least `apart` from each other.

        Which cuts a text gets depends only on what is left of them, so that prompts sharing a prefix share its cuts.
        """
        cuts: list[int] = []
        last = 0
        stride = max(self._word_stride, apart) if self._words else len(text)
        while last + apart < len(text):
            cut = self._token_cut(text, last, apart, last + stride)
            if cut is None and last + stride < len(text):
                word = self._word_cut(text, last + stride)
                cut = self._token_cut(text, last, apart, word or len(text)) or word
            if cut is None:
                break
            cuts.append(cut)
            last = cut
        return cuts

    def _token_cut(self, text: str, last: int, apart: int, stop: int) -> int | None:
        """The first cut at a token, at least `apart` after `last`, that lies before `stop`."""
        if self._tokens is None:
            return None
        # The search may start anywhere: these tokens are unambiguous, no occurrence of one is part of something else.
        least = last + apart
        at = max(last, least - self._longest)
        while match := self._tokens.search(text, at, stop):
            start, at = match.span()
            if start >= least and match[0] in self._before:
                return start
            if least <= at < len(text) and match[0] in self._after:
                return at
        return None

    def _word_cut(self, text: str, at: int) -> int | None:
        """The end of the first word that ends after `at`, unless that is far."""
        match = _WORD_END.search(text, at, at + _WORD_WINDOW)
        return match.end() if match and match.end() < len(text) else None


def _token_cuts(description: Mapping[str, Any], added: Sequence[Mapping[str, Any]]) -> tuple[set[str], set[str]]:
    """The added tokens just before which, and just after which, a cut is safe."""
    steps = _flatten(description.get("pre_tokenizer"), "pretokenizers")
    if (
        not {step.get("type") for step in steps} <= _LOCAL_PRE_TOKENIZERS
        or not {step.get("type") for step in _normalizers(description)} <= _LOCAL_NORMALIZERS
        or any(token.get("single_word", True) for token in added)
        or _is_random(description)
    ):
        return set(), set()
    # A Metaspace that marks only the start of the whole text would mark a piece that begins with text.
    schemes = {step.get("prepend_scheme") for step in steps if step.get("type") == "Metaspace"}
    raw = [token for token in added if not token.get("normalized", True)]
    names = [str(token["content"]) for token in raw]
    clear = [token for token in raw if _is_unambiguous(str(token["content"]), names)]
    before = {str(token["content"]) for token in clear if not token.get("lstrip", True)}
    after = {str(token["content"]) for token in clear if not token.get("rstrip", True)}
    return before, after if schemes <= {"always", "never"} else set()


def _allows_word_cuts(description: Mapping[str, Any], added: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a cut between a letter and white space is safe: see the top of this file."""
    return (
        _is_word_splitter(_flatten(description.get("pre_tokenizer"), "pretokenizers"))
        and {step.get("type") for step in _normalizers(description)} <= _COMPOSING
        and not any(token.get("single_word", True) or token.get("rstrip", True) for token in added)
        and not any(re.search(r"\s", str(token.get("content"))) for token in added)
        and not _is_random(description)
    )


def _is_word_splitter(steps: Sequence[Mapping[str, Any]]) -> bool:
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        return False
    if len(steps) == 1:
        return bool(steps[0].get("use_regex", True))
    if len(steps) != 2 or steps[1].get("use_regex", True):
        return False
    pattern = steps[0].get("pattern") or {}
    return (
        steps[0].get("type") == "Split"
        and steps[0].get("behavior") == "Isolated"
        and not steps[0].get("invert", True)
        and pattern.get("Regex") in _WORD_PATTERNS
    )


def _normalizers(description: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return _flatten(description.get("normalizer"), "normalizers")


def _flatten(step: Mapping[str, Any] | None, children: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    if step.get("type") == "Sequence":
        return [inner for child in step.get(children) or () for inner in _flatten(child, children)]
    return [step]


def _is_random(description: Mapping[str, Any]) -> bool:
    """BPE dropout draws its merges by lot: then not even the same text has the same tokens twice."""
    return bool((description.get("model") or {}).get("dropout"))


def _is_unambiguous(token: str, others: Iterable[str]) -> bool:
    """Whether each occurrence of `token` in any text is found as such: no other can hold it or overlap its start."""
    if not token.strip() or token != token.strip():
        return False
    overlaps = (other[-size:] == token[:size] for other in others for size in range(1, min(len(other), len(token))))
    return not any(token in other and token != other for other in others) and not any(overlaps)


def _preferred(tokens: set[str], texts: Sequence[str]) -> set[str]:
    liked = {token for token in tokens if any(token in text for text in texts)}
    return set(sorted(liked or tokens)[:_MAX_TOKENS])
