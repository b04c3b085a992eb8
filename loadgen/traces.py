"""Request traces in Mooncake's form.

One JSON object a line: `timestamp` (milliseconds), `input_length` and `output_length` (tokens), `hash_ids` (one id for
each block of 512 prompt tokens, the last block may be partial; equal ids mean equal prompts up to there). A file may be
compressed (.xz, .gz). Owns the form. Must never hold a whole trace, nor correct one: a line that is wrong is an error
with its number.
"""

from __future__ import annotations

import gzip
import lzma
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

BLOCK_TOKENS = 512


class TraceError(ValueError):
    """The file is no trace; the message names it, and the line."""


class TraceRequest(msgspec.Struct, frozen=True):
    """One request, due `at_s` seconds after the first of the trace. `blocks` are the hash ids of its prompt."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]


class _Line(msgspec.Struct, frozen=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


_decoder = msgspec.json.Decoder(_Line)


def read_trace(path: Path, until_s: float = math.inf) -> Iterator[TraceRequest]:
    """The requests of the first `until_s` seconds, a line at a time. Raises TraceError, also when it cannot be read."""
    number = 0
    origin = before = None
    try:
        with opened(path) as lines:
            for line in lines:
                number += 1
                if line.isspace():
                    continue
                said = _read(line, before)
                before = said.timestamp
                origin = before if origin is None else origin
                at_s = (said.timestamp - origin) / 1e3
                if at_s >= until_s:
                    return
                yield TraceRequest(at_s, said.input_length, said.output_length, said.hash_ids)
    except OSError as error:  # gzip's complaints are such, too
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from None
    except (lzma.LZMAError, zlib.error, EOFError) as error:
        raise TraceError(f"{path} is damaged after line {number}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}, line {number}: {error}") from None


def opened(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where it is compressed. Raises OSError."""
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(path))
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    return path.open("rb")


def _read(line: bytes, before: float | None) -> _Line:
    """Raises ValueError for a line that is no request, or one that is earlier than the line `before` it."""
    said = _decoder.decode(line)
    if said.timestamp < 0 or (before is not None and said.timestamp < before):
        raise ValueError(f"timestamp {said.timestamp:g} is earlier than the one before; sort the trace by time")
    if said.input_length < 1 or said.output_length < 0:
        raise ValueError("input_length must be at least 1, output_length at least 0")
    blocks = -(-said.input_length // BLOCK_TOKENS)
    if len(said.hash_ids) != blocks:
        raise ValueError(
            f"input_length {said.input_length} makes {blocks} blocks of {BLOCK_TOKENS} tokens, but hash_ids has "
            f"{len(said.hash_ids)}"
        )
    return said


class TraceFacts(msgspec.Struct, frozen=True):
    """A stretch of a trace in figures: what a cache without bounds could save at most is in `distinct_blocks`."""

    requests: int
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    longest_prompt: int
    blocks: int
    distinct_blocks: int


def facts(requests: Iterable[TraceRequest]) -> TraceFacts:
    listed = list(requests)
    return TraceFacts(
        requests=len(listed),
        duration_s=listed[-1].at_s if listed else 0.0,
        prompt_tokens=sum(request.prompt_tokens for request in listed),
        output_tokens=sum(request.output_tokens for request in listed),
        longest_prompt=max((request.prompt_tokens for request in listed), default=0),
        blocks=sum(len(request.blocks) for request in listed),
        distinct_blocks=len({block for request in listed for block in request.blocks}),
    )
