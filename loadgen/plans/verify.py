"""Proof, with a real tokenizer, that a plan's prompts have the block structure that the plan says.

Owns the checks. Must never correct anything: text that is cut otherwise than planned is an error that says which words
and how, since every figure about prefixes would be wrong without a sign of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any, Protocol

import msgspec

from loadgen.plans.plan import Piece, Plan, Session
from loadgen.plans.prompts import Prompts
from loadgen.plans.vocabulary import Vocabulary
from loadgen.plans.wording import CODE_WORDS

SAMPLE = 32


class Encoder(Protocol):
    """What `radix.chat.ChatTokenizer` is."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


class ChatEncoder(Encoder, Protocol):
    """What `radix.chat.ChatTokenizer` is, too."""

    def encode_chat(self, messages: Sequence[Any], /) -> list[int]: ...


class Verified(msgspec.Struct, frozen=True):
    """What was looked at, and found to be as planned."""

    requests: int
    tokens: int


def verify_text(tokenizer: Encoder, plan: Plan, sample: int = SAMPLE, vocabulary: Vocabulary | None = None) -> Verified:
    """Of `sample` requests, seeded: their text is as many tokens as planned, the ids are those of the form *tokens*,
    and two prompts share the tokens of the pieces that they share, and at most `CODE_WORDS` more.

    Raises ValueError for the first prompt that is otherwise.
    """
    prompts = Prompts(plan, "text", "planned", vocabulary)
    asked = [prompts.pieces(session, turn) for session, turn in _sampled(plan, sample)]
    encoded = [tokenizer.encode(prompts.text(pieces), add_special_tokens=False) for pieces in asked]
    for pieces, ids in zip(asked, encoded, strict=True):
        _compare(ids, prompts.tokens(pieces), prompts.text(pieces))
    for (pieces, ids), (others, other_ids) in pairwise(zip(asked, encoded, strict=True)):
        least, most = _planned_sharing(pieces, others)
        shared = _shared(ids, other_ids)
        if not least <= shared <= most:
            raise ValueError(f"two prompts share {shared} tokens where {least} to {most} are planned")
    return Verified(len(asked), sum(map(len, encoded)))


def verify_chat(
    tokenizer: ChatEncoder, plan: Plan, sample: int = SAMPLE, vocabulary: Vocabulary | None = None
) -> Verified:
    """Of `sample` requests, seeded: the model's chat template puts the same around each message whatever it says, and a
    message's words are its tokens. Raises ValueError for the first chat that is otherwise, or text (`verify_text`)."""
    verify_text(tokenizer, plan, sample, vocabulary)
    prompts = Prompts(plan, "chat", "planned", vocabulary)
    tokens = 0
    chosen = _sampled(plan, sample)
    for session, turn in chosen:
        messages = prompts.body(session, turn, ())["messages"]
        ids = tokenizer.encode_chat(messages)
        _compare(ids, _expected(tokenizer, prompts, messages, prompts.pieces(session, turn)), messages[-1]["content"])
        tokens += len(ids)
    return Verified(len(chosen), tokens)


def _sampled(plan: Plan, sample: int) -> list[tuple[Session, int]]:
    every = [(session, turn) for session in plan.sessions for turn in range(len(session.turns))]
    return Random(f"verified {plan.seed}").sample(every, min(sample, len(every)))


def _compare(ids: Sequence[int], planned: Sequence[int], text: str) -> None:
    if ids == planned:
        return
    at = _shared(ids, planned)
    words = text.split()
    near = " ".join(words[max(0, at - 2) : at + 3]) if at < len(words) else " ".join(words[:5])
    raise ValueError(
        f"the tokenizer makes {len(ids)} tokens of a prompt planned with {len(planned)}, and other ones from number "
        f"{at} on (near “{near}”): its blocks are not the planned ones. Name the served model's own tokenizer, or send "
        "token ids"
    )


def _expected(
    tokenizer: ChatEncoder, prompts: Prompts, messages: Sequence[dict[str, str]], pieces: Sequence[Piece]
) -> list[int]:
    """The chat of one word a message, with each word replaced by what the message really says."""
    word, word_id = _marker(tokenizer, prompts, messages)
    frame = tokenizer.encode_chat([{"role": message["role"], "content": word} for message in messages])
    if frame.count(word_id) != len(messages):
        raise ValueError("the model's chat template cuts or repeats what messages say; send text or token ids")
    said = prompts.tokens(pieces)
    expected: list[int] = []
    contents = iter(messages)
    start = 0
    for token in frame:
        if token == word_id:
            end = start + next(contents)["content"].count(" ")
            expected += said[start:end]
            start = end
        else:
            expected.append(token)
    return expected


def _marker(tokenizer: ChatEncoder, prompts: Prompts, messages: Sequence[dict[str, str]]) -> tuple[str, int]:
    """A word, and its id, that the template itself does not print."""
    bare = set(tokenizer.encode_chat([{"role": message["role"], "content": ""} for message in messages]))
    for content in range(len(bare) + 1):
        piece = (Piece(content, 1),)
        if prompts.tokens(piece)[0] not in bare:
            return prompts.text(piece), prompts.tokens(piece)[0]
    raise ValueError("the model's chat template prints every word there is")


def _planned_sharing(pieces: Sequence[Piece], others: Sequence[Piece]) -> tuple[int, int]:
    """The least and the most tokens that two prompts of these pieces share."""
    shared = 0
    for piece, other in zip(pieces, others, strict=False):
        if piece.content != other.content:
            return shared, shared + CODE_WORDS
        shared += min(piece.tokens, other.tokens)
        if piece.tokens != other.tokens:  # after the shorter one something else goes on, which may look the same
            return shared, shared + CODE_WORDS
    return shared, shared


def _shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next(
        (at for at, (left, right) in enumerate(zip(ids, others, strict=False)) if left != right),
        min(len(ids), len(others)),
    )
