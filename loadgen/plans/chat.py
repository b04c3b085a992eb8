"""Workload: conversations of several turns below one of some system prompts; each prompt holds all before it.

Owns its parameters and how they become sessions.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Annotated

import msgspec

from loadgen.plans.draws import Pace, Times, paced, ranks, session_lengths
from loadgen.plans.plan import Piece, Session, Turn
from loadgen.plans.settings import Span, about


class Chat(msgspec.Struct, frozen=True):
    """A session's group is its system prompt, the most popular one 0."""

    systems: Annotated[int, about("system prompts", ge=1)] = 8
    zipf: Annotated[float, about("exponent of their popularity; 0: all alike", ge=0)] = 1.0
    system_tokens: Annotated[int, about("length of each system prompt", "tokens", ge=1)] = 256
    turns: Annotated[Span, about("turns of a conversation", ge=1)] = (2, 8)
    question_tokens: Annotated[Span, about("what the user adds each turn", "tokens", ge=1)] = (20, 200)
    output_tokens: Annotated[Span, about("length of answers", "tokens", ge=1)] = (48, 192)
    think_s: Annotated[float, about("mean pause before a next turn", "s", ge=0)] = 5.0
    causal: Annotated[bool, about("pauses begin at the end of an answer; else turns are due at fixed times")] = True


def chat(parameters: Chat, times: Times) -> Iterator[Session]:
    pace = Pace(parameters.think_s, parameters.causal)
    own = count(parameters.systems)
    drawn = ranks(parameters.systems, parameters.zipf, times.seed)
    for number, (_, system) in enumerate(zip(times.starts, drawn, strict=False)):
        lengths = session_lengths(times.seed, number)
        turns: list[Turn] = []
        for turn in range(lengths.randint(*parameters.turns)):
            question = Piece(next(own), lengths.randint(*parameters.question_tokens))
            first = () if turn else (Piece(system, parameters.system_tokens, "system"),)
            turns.append(Turn((*first, question), lengths.randint(*parameters.output_tokens)))
        yield paced(number, system, turns, times, pace)
