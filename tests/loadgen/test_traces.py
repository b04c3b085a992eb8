"""Traces: what is read of a file, and what is wrong with one."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from loadgen.traces import TraceError, TraceRequest, facts, read_trace

EXCERPT = Path(__file__).with_name("excerpt.jsonl")
GOOD = b'{"timestamp": 5, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}\n'


def written(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(lines))
    return path


def test_requests_are_read_in_order_with_times_from_the_first() -> None:
    requests = list(read_trace(EXCERPT))
    assert requests[0] == TraceRequest(0.0, 1100, 3, (0, 1, 2))
    assert [request.at_s for request in requests] == [0, 2.5, 5, 10, 10, 15, 20, 25]


def test_a_time_limit_keeps_what_came_before_it() -> None:
    assert [request.at_s for request in read_trace(EXCERPT, 10)] == [0, 2.5, 5]


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_a_compressed_trace_reads_as_the_plain_one(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    packed = written(tmp_path / f"trace.jsonl{suffix}", pack(EXCERPT.read_bytes()))
    assert list(read_trace(packed)) == list(read_trace(EXCERPT))


def test_a_trace_is_read_no_further_than_it_is_used(tmp_path: Path) -> None:
    trace = written(tmp_path / "trace.jsonl", GOOD, b"not a request\n")
    assert next(read_trace(trace)).prompt_tokens == 600
    late = written(tmp_path / "late.jsonl", GOOD, GOOD.replace(b"5", b"99000", 1), b"not a request\n")
    assert len(list(read_trace(late, 1.0))) == 1


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"oops\n", "JSON is malformed"),
        (b"[]\n", "Expected `object`"),
        (b"\xff\n", "JSON is malformed"),
        (b'{"timestamp": 6, "input_length": 600, "hash_ids": [1, 2]}\n', "output_length"),
        (GOOD.replace(b"5", b"4", 1), "earlier than the one before"),
        (GOOD.replace(b"600", b"0"), "input_length must be at least 1"),
        (GOOD.replace(b": 1,", b": -1,"), "output_length at least 0"),
        (GOOD.replace(b"600", b"1025"), "makes 3 blocks of 512 tokens, but hash_ids has 2"),
        (GOOD.replace(b"[1, 2]", b'["a", 2]'), "Expected `int`"),
        (b'{"timestamp": 6, "input_le', "truncated"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: bytes, complaint: str) -> None:
    trace = written(tmp_path / "trace.jsonl", GOOD, b"\n", line)
    with pytest.raises(TraceError, match=r"trace\.jsonl, line 3: ") as raised:
        list(read_trace(trace))
    assert complaint in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.jsonl cannot be read: No such file"):
        list(read_trace(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_a_damaged_archive_is_an_error_and_not_a_shorter_trace(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    whole = pack(EXCERPT.read_bytes())
    for damaged in (whole[:-20], b"no archive", whole[:40] + b"\0\1\2\3" + whole[44:]):
        with pytest.raises(TraceError, match=suffix):
            list(read_trace(written(tmp_path / f"trace.jsonl{suffix}", damaged)))


def test_the_facts_of_a_trace_tell_what_a_cache_could_save() -> None:
    said = facts(read_trace(EXCERPT))
    assert (said.requests, said.blocks, said.distinct_blocks) == (8, 19, 7)
    assert (said.longest_prompt, said.duration_s) == (1536, 25.0)
