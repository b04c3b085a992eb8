"""Workload: agents in tool loops. Each kind has one long system prompt with its tools; a task is many short turns.

Owns its parameters and how they become sessions. A turn's answer calls a tool; what the tool gave is appended, and the
next turn follows as soon as the tool is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Annotated, Literal

import msgspec

from loadgen.plans.draws import Pace, Times, paced, ranks, session_lengths, shared_lengths
from loadgen.plans.plan import Piece, Session, Turn
from loadgen.plans.settings import Span, about


class Agents(msgspec.Struct, frozen=True):
    """A session's group is its kind of agent, the most popular one 0."""

    kinds: Annotated[int, about("kinds of agents", ge=1)] = 6
    zipf: Annotated[float, about("exponent of their popularity; 0: all alike", ge=0)] = 0.8
    prefix_tokens: Annotated[Span, about("a kind's system prompt with its tools", "tokens", ge=1)] = (2000, 6000)
    task_tokens: Annotated[Span, about("what an agent is told to do", "tokens", ge=1)] = (40, 400)
    turns: Annotated[Span, about("requests of a task", ge=1)] = (6, 20)
    tool_tokens: Annotated[Span, about("what a tool gives back", "tokens", ge=1)] = (20, 600)
    tool_role: Annotated[
        Literal["tool", "user"], about("role of its messages; user for servers that want every tool call declared")
    ] = "tool"
    output_tokens: Annotated[Span, about("length of answers", "tokens", ge=1)] = (20, 100)
    think_s: Annotated[float, about("mean time a tool takes", "s", ge=0)] = 0.3
    causal: Annotated[bool, about("tools begin at the end of an answer; else turns are due at fixed times")] = True


def agents(parameters: Agents, times: Times) -> Iterator[Session]:
    pace = Pace(parameters.think_s, parameters.causal)
    own = count(parameters.kinds)
    drawn = ranks(parameters.kinds, parameters.zipf, times.seed)
    tokens = shared_lengths(parameters.kinds, parameters.prefix_tokens, times.seed)
    for number, (_, kind) in enumerate(zip(times.starts, drawn, strict=False)):
        lengths = session_lengths(times.seed, number)
        turns: list[Turn] = []
        for turn in range(lengths.randint(*parameters.turns)):
            if turn:
                pieces: tuple[Piece, ...] = (
                    Piece(next(own), lengths.randint(*parameters.tool_tokens), parameters.tool_role),
                )
            else:
                task = Piece(next(own), lengths.randint(*parameters.task_tokens))
                pieces = (Piece(kind, tokens[kind], "system"), task)
            turns.append(Turn(pieces, lengths.randint(*parameters.output_tokens)))
        yield paced(number, kind, turns, times, pace)
