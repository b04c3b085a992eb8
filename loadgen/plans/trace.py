"""Workload: the requests of a recorded trace, each a session of one turn, at its times or at any others.

Owns how a trace's hash ids become pieces: ids are numbered in order of first appearance, and each is one piece of a
block's tokens. Must never change which prompts share a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from loadgen.plans.plan import Piece, Session, Turn
from loadgen.plans.settings import about
from loadgen.plans.trace_formats import trace_format
from loadgen.traces import TraceRequest


class Trace(msgspec.Struct, frozen=True):
    """Sessions have no groups.

    With a `token_scale` of k, the tokens of every block are divided by k, those of a partial last block in proportion
    and rounded up; it has to divide a whole block's.
    """

    file: Annotated[str, about("the trace; .xz and .gz are read as they are")]
    format: Annotated[str, about("its form: mooncake, bailian, azure, or another package's")] = "mooncake"
    token_scale: Annotated[int, about("divides the tokens of prompts", ge=1)] = 1
    output_scale: Annotated[float | None, about("divides the tokens of answers; none: as token_scale", gt=0)] = None
    most_output_tokens: Annotated[int | None, about("where answers are cut; none: nowhere", "tokens", ge=1)] = None
    rate_scale: Annotated[float, about("how many times as fast as recorded", gt=0)] = 1.0
    until_s: Annotated[float | None, about("how much of the trace, in its own time; none: all", "s", gt=0)] = None


def read_requests(parameters: Trace) -> Iterator[TraceRequest]:
    """At their recorded times. Raises TraceError for a file that is no trace, ValueError for a bad scale."""
    form = trace_format(parameters.format)
    if form.block_tokens % parameters.token_scale:
        allowed = ", ".join(str(scale) for scale in range(1, form.block_tokens + 1) if form.block_tokens % scale == 0)
        raise ValueError(
            f"token_scale: {parameters.token_scale} does not divide a block's {form.block_tokens} tokens; use {allowed}"
        )
    until_s = math.inf if parameters.until_s is None else parameters.until_s
    return iter(form.read(Path(parameters.file), until_s))


def trace(parameters: Trace, requests: Iterable[TraceRequest], starts: Iterable[float] | None) -> Iterator[Session]:
    """At `starts`, as far as both go; or, without any, at the trace's own times over `rate_scale`."""
    block_tokens = trace_format(parameters.format).block_tokens
    contents: dict[int, int] = {}
    known: dict[tuple[int, int], Piece] = {}  # equal pieces are one object: a trace names each block many times
    others = iter(starts) if starts is not None else None
    for request in requests:
        start = request.at_s / parameters.rate_scale if others is None else next(others, None)
        if start is None:
            return
        pieces = []
        for index, block in enumerate(request.blocks):
            recorded = min(block_tokens, request.prompt_tokens - index * block_tokens)
            key = (contents.setdefault(block, len(contents)), -(-recorded // parameters.token_scale))
            pieces.append(known.setdefault(key, Piece(*key)))
        yield Session(start, (Turn(tuple(pieces), _output_tokens(parameters, request)),))


def _output_tokens(parameters: Trace, request: TraceRequest) -> int:
    scale = parameters.token_scale if parameters.output_scale is None else parameters.output_scale
    scaled = max(1, math.ceil(request.output_tokens / scale))
    return scaled if parameters.most_output_tokens is None else min(scaled, parameters.most_output_tokens)
