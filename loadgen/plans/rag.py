"""Workload: readers of a shared library ask several questions each about one document, documents popular by Zipf.

Owns its parameters and how they become sessions. All share one system prompt; then comes the document, then the
questions and their answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Annotated

import msgspec

from loadgen.plans.draws import Pace, Times, paced, ranks, session_lengths, shared_lengths
from loadgen.plans.plan import Piece, Session, Turn
from loadgen.plans.settings import Span, about


class Rag(msgspec.Struct, frozen=True):
    """A session's group is its document, the most popular one 0."""

    documents: Annotated[int, about("documents in the library", ge=1)] = 60
    zipf: Annotated[float, about("exponent of their popularity; 0: all alike", ge=0)] = 0.8
    system_tokens: Annotated[int, about("the system prompt that all share", "tokens", ge=1)] = 48
    document_tokens: Annotated[Span, about("length of documents", "tokens", ge=1)] = (2000, 8000)
    turns: Annotated[Span, about("questions about one document", ge=1)] = (3, 6)
    question_tokens: Annotated[Span, about("length of questions", "tokens", ge=1)] = (10, 40)
    output_tokens: Annotated[Span, about("length of answers", "tokens", ge=1)] = (24, 64)
    think_s: Annotated[float, about("mean pause before a next question", "s", ge=0)] = 3.0
    causal: Annotated[bool, about("pauses begin at the end of an answer; else turns are due at fixed times")] = True


def rag(parameters: Rag, times: Times) -> Iterator[Session]:
    pace = Pace(parameters.think_s, parameters.causal)
    own = count(parameters.documents + 1)
    drawn = ranks(parameters.documents, parameters.zipf, times.seed)
    tokens = shared_lengths(parameters.documents, parameters.document_tokens, times.seed)
    for number, (_, document) in enumerate(zip(times.starts, drawn, strict=False)):
        opened = (Piece(parameters.documents, parameters.system_tokens, "system"), Piece(document, tokens[document]))
        lengths = session_lengths(times.seed, number)
        turns: list[Turn] = []
        for turn in range(lengths.randint(*parameters.turns)):
            question = Piece(next(own), lengths.randint(*parameters.question_tokens))
            turns.append(Turn((question,) if turn else (*opened, question), lengths.randint(*parameters.output_tokens)))
        yield paced(number, document, turns, times, pace)
