"""Workload: every prompt begins with the same block or blocks and then goes on by itself, as in the conversation trace.

Owns its parameters and how they become sessions. A router that goes by the longest match alone sends all of it to one
replica: the first block is warm there and, since it goes there, nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec

from loadgen.plans.draws import Times, session_lengths
from loadgen.plans.plan import Piece, Session, Turn
from loadgen.plans.settings import Span, about


class Universal(msgspec.Struct, frozen=True):
    """Sessions have no groups."""

    shared_tokens: Annotated[int, about("what all prompts begin with", "tokens", ge=1)] = 512
    private_tokens: Annotated[Span, about("each request's own rest", "tokens", ge=1)] = (512, 4096)
    output_tokens: Annotated[Span, about("length of answers", "tokens", ge=1)] = (32, 96)


def universal(parameters: Universal, times: Times) -> Iterator[Session]:
    for number, start in enumerate(times.starts):
        lengths = session_lengths(times.seed, number)
        pieces = (
            Piece(0, parameters.shared_tokens, "system"),
            Piece(1 + number, lengths.randint(*parameters.private_tokens)),
        )
        yield Session(start, (Turn(pieces, lengths.randint(*parameters.output_tokens)),))
