"""Workload: requests of one turn that begin with one of some shared prefixes, popular by Zipf, and end with their own.

Owns its parameters and how they become sessions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec

from loadgen.plans.draws import Times, ranks, session_lengths
from loadgen.plans.plan import Piece, Session, Turn
from loadgen.plans.settings import Span, about


class SharedPrefix(msgspec.Struct, frozen=True):
    """A session's group is its prefix, the most popular one 0."""

    prefixes: Annotated[int, about("shared prefixes", ge=1)] = 40
    zipf: Annotated[float, about("exponent of their popularity; 0: all alike", ge=0)] = 1.0
    prefix_tokens: Annotated[int, about("length of each prefix", "tokens", ge=1)] = 2048
    suffix_tokens: Annotated[Span, about("each request's own rest", "tokens", ge=1)] = (64, 256)
    output_tokens: Annotated[Span, about("length of answers", "tokens", ge=1)] = (32, 96)


def shared_prefix(parameters: SharedPrefix, times: Times) -> Iterator[Session]:
    drawn = ranks(parameters.prefixes, parameters.zipf, times.seed)
    for number, (start, prefix) in enumerate(zip(times.starts, drawn, strict=False)):
        lengths = session_lengths(times.seed, number)
        pieces = (
            Piece(prefix, parameters.prefix_tokens, "system"),
            Piece(parameters.prefixes + number, lengths.randint(*parameters.suffix_tokens)),
        )
        yield Session(start, (Turn(pieces, lengths.randint(*parameters.output_tokens)),), prefix)
