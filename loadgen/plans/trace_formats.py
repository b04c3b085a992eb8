"""Files of recorded requests, in the forms that others publish them in.

Owns the list of forms. A package can add one: an entry point of the group `radixgate.trace_formats` that names a
TraceFormat. Must never hold a whole trace; what is wrong in one is an error that says where.
"""

from __future__ import annotations

import csv
import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from importlib.metadata import entry_points
from io import TextIOWrapper
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, cast

import msgspec

from loadgen.traces import BLOCK_TOKENS, TraceError, TraceRequest, opened, read_trace

GROUP = "radixgate.trace_formats"


class TraceFormat(Protocol):
    """`block_tokens` is how many prompt tokens one of its hash ids stands for; equal ids mean equal prompts up to
    there. `read` gives the requests of the first `until_s` seconds by rising time, and raises TraceError."""

    @property
    def block_tokens(self) -> int: ...

    def read(self, path: Path, until_s: float) -> Iterable[TraceRequest]: ...


class Mooncake:
    """See `loadgen.traces`."""

    block_tokens = BLOCK_TOKENS

    def read(self, path: Path, until_s: float) -> Iterator[TraceRequest]:
        return read_trace(path, until_s)


class _BailianLine(msgspec.Struct, frozen=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


class Bailian:
    """Alibaba's usage traces (alibaba-edu/qwen-bailian-usagetraces-anon): a JSON line a request, `timestamp` in
    seconds, a hash id for every 16 tokens. Where `input_length` does not fit those, they count."""

    block_tokens = 16

    def __init__(self) -> None:
        self._decoder = msgspec.json.Decoder(_BailianLine)

    def read(self, path: Path, until_s: float) -> Iterator[TraceRequest]:
        return _timed(path, map(self._request, _lines(path)), until_s)

    def _request(self, line: str) -> TraceRequest:
        said = self._decoder.decode(line)
        blocks = len(said.hash_ids)
        if not blocks:
            raise ValueError("hash_ids is empty")
        tokens = min(max(said.input_length, (blocks - 1) * self.block_tokens + 1), blocks * self.block_tokens)
        return TraceRequest(said.timestamp, tokens, said.output_length, said.hash_ids)


class Azure:
    """Azure's public LLM traces: a CSV of TIMESTAMP, ContextTokens, GeneratedTokens. They say nothing of prompts, so no
    two share anything."""

    block_tokens = BLOCK_TOKENS
    _COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

    def read(self, path: Path, until_s: float) -> Iterator[TraceRequest]:
        rows = csv.DictReader(_lines(path))
        ids = count()
        return _timed(path, (self._request(row, ids) for row in rows), until_s)

    def _request(self, row: Mapping[str, str | None], ids: Iterator[int]) -> TraceRequest:
        when, prompt, output = (row.get(column) for column in self._COLUMNS)
        if when is None or prompt is None or output is None:
            raise ValueError(f"it must have the columns {', '.join(self._COLUMNS)}")
        tokens = int(prompt)
        blocks = tuple(next(ids) for _ in range(-(-tokens // self.block_tokens)))
        return TraceRequest(datetime.fromisoformat(when).timestamp(), tokens, int(output), blocks)


FORMATS: Mapping[str, TraceFormat] = MappingProxyType({"mooncake": Mooncake(), "bailian": Bailian(), "azure": Azure()})


def trace_format(name: str) -> TraceFormat:
    """The form of this name, ours or another package's. Raises ValueError for none such."""
    if name in FORMATS:
        return FORMATS[name]
    added = entry_points(group=GROUP)
    if name in added.names:
        return cast(TraceFormat, added[name].load())
    known = ", ".join([*FORMATS, *sorted(added.names)])
    raise ValueError(f"format: {name!r} is no trace's form; there are {known}")


def _lines(path: Path) -> Iterator[str]:
    with TextIOWrapper(opened(path), encoding="utf-8") as file:
        for line in file:
            if not line.isspace():
                yield line


def _timed(path: Path, requests: Iterator[TraceRequest], until_s: float) -> Iterator[TraceRequest]:
    """Requests with seconds after the first of them as their times; what is wrong is said with the request's number."""
    origin: float | None = None
    before = 0.0
    number = 1
    try:
        for request in requests:
            origin = request.at_s if origin is None else origin
            at_s = request.at_s - origin
            if at_s < before:
                raise ValueError("it is earlier than the one before; sort the trace by time")
            if request.prompt_tokens < 1 or request.output_tokens < 0:
                raise ValueError("a prompt has at least 1 token, an answer at least 0")
            if at_s >= until_s:
                return
            before = at_s
            yield msgspec.structs.replace(request, at_s=at_s)
            number += 1
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from None
    except (lzma.LZMAError, zlib.error, EOFError) as error:
        raise TraceError(f"{path} is damaged at request {number}: {error}") from None
    except (ValueError, OverflowError) as error:
        raise TraceError(f"{path}, request {number}: {error}") from None
