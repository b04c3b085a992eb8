"""The relay finds a body's end, and its chunks' ends, however the bytes are cut on their way."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.framing import BadFraming, ChunkedFraming, CloseFraming, LengthFraming
from tests.router.harness import chunk

chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
trailers = st.sampled_from([b"0\r\n\r\n", b"0\r\nX-Sum: 1\r\n\r\n", b"0;x=1\r\nA: b\r\nC: d\r\n\r\n"])


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges) if start < end]


@given(chunks, trailers, st.lists(st.integers(min_value=0, max_value=10_000), max_size=8), st.binary(max_size=9))
def test_the_end_of_a_chunked_body_is_found_however_it_is_cut(
    body: list[bytes], last: bytes, cuts: list[int], after: bytes
) -> None:
    message = b"".join(map(chunk, body)) + last
    framing = ChunkedFraming()
    payload = framing.payload = bytearray()
    fed = 0
    for piece in pieces(message + after, cuts):
        end = framing.feed(piece)
        if end >= 0:
            assert fed + end == len(message)
            break
        fed += len(piece)
    else:
        raise AssertionError("no end found")
    assert payload == b"".join(body)


@given(chunks.filter(bool), st.lists(st.integers(min_value=0, max_value=10_000), max_size=8))
def test_held_back_at_boundaries_a_body_passes_whole_and_only_whole_chunks_do(
    body: list[bytes], cuts: list[int]
) -> None:
    message = b"".join(map(chunk, body))
    ends = {sum(len(chunk(part)) for part in body[:count]) for count in range(len(body) + 1)}
    framing = ChunkedFraming()
    held, passed = b"", b""
    for piece in pieces(message, cuts):
        data = held + piece
        assert framing.feed(data) == -1
        if framing.boundary < len(data):
            framing.rewind()
        held, passed = data[framing.boundary :], passed + data[: framing.boundary]
        assert len(passed) in ends
        assert framing.at_boundary()
    assert passed == message


@given(st.binary(min_size=1, max_size=50), st.lists(st.integers(min_value=0, max_value=100), max_size=5))
def test_a_length_counts_bytes(body: bytes, cuts: list[int]) -> None:
    framing = LengthFraming(len(body))
    *first, last = pieces(body, cuts)
    assert all(framing.feed(piece) == -1 for piece in first)
    assert framing.feed(last + b"next") == len(last)


def test_a_body_without_length_ends_with_the_connection() -> None:
    framing = CloseFraming()
    assert framing.feed(b"anything") == -1
    assert framing.close_ends()


@pytest.mark.parametrize("line", [b"xyz", b"-1", b"+1", b" 1", b"1_0", b"", b"0x1", b"0X1"])
def test_a_chunk_size_is_hexadecimal_digits(line: bytes) -> None:
    with pytest.raises(BadFraming):
        ChunkedFraming().feed(line + b"\r\nabc\r\n")


def test_a_size_line_has_a_limit() -> None:
    framing = ChunkedFraming()
    with pytest.raises(BadFraming):
        framing.feed(b"1;" + b"x" * 20_000)


@pytest.mark.parametrize("wire", [b"2\r\nokXX0\r\n\r\n", b"2\r\nok!\n0\r\n\r\n"])
def test_a_decoded_chunk_is_as_long_as_its_size_says(wire: bytes) -> None:
    framing = ChunkedFraming()
    framing.payload = bytearray()
    with pytest.raises(BadFraming):
        framing.feed(wire)
