"""Where a response's body ends, and where its chunks do, found without touching a byte of it.

Owns the position in the message; the bytes go on to the client as they came. `feed` returns the offset in `data` just
past the end of the message, or -1 while more is to come. Must never hold a body back or copy it.
"""

from __future__ import annotations

from typing import Protocol

MAX_SIZE_LINE = 16 * 1024
_X = (b"x", b"X")


class BadFraming(ValueError):
    """The replica's response breaks HTTP's rules of message length."""


class Framing(Protocol):
    """How one body is delimited."""

    def feed(self, data: bytes) -> int: ...

    def close_ends(self) -> bool:
        """Whether the connection's end is the proper end of this body."""
        ...


class LengthFraming:
    """Content-Length: so many bytes and no more."""

    __slots__ = ("left",)

    def __init__(self, length: int) -> None:
        self.left = length

    def feed(self, data: bytes) -> int:
        if len(data) < self.left:
            self.left -= len(data)
            return -1
        end, self.left = self.left, 0
        return end

    def close_ends(self) -> bool:
        return False


class CloseFraming:
    """Neither length nor chunks: the body lasts until the replica closes the connection (HTTP/1.0)."""

    __slots__ = ()

    def feed(self, data: bytes) -> int:
        return -1

    def close_ends(self) -> bool:
        return True


class ChunkedFraming:
    """Transfer-Encoding: chunked.

    After each feed, `boundary` is the offset in the fed data where the last incomplete chunk starts, or the data's
    length when every chunk in it is complete. `rewind()` forgets that incomplete chunk: the caller feeds it again
    together with what follows.
    """

    __slots__ = ("_line", "_skip", "boundary", "payload")

    def __init__(self) -> None:
        self._skip = 0  # bytes of the current chunk, its CRLF included, that are still to come
        self._line = b""  # a size line (or the last chunk with its trailers) cut off at the end of the data
        self.boundary = 0
        self.payload: bytearray | None = None  # the decoded chunks, when somebody wants them

    def feed(self, data: bytes) -> int:
        carried = len(self._line)
        if carried:
            data = self._line + data
            self._line = b""
        start = 0
        position = self._skip
        length = len(data)
        if self.payload is not None and position:
            self._decode(data, 0, position)
        while position < length:
            start = position
            line_end = data.find(b"\r\n", position)
            if line_end < 0:
                return self._cut_off(data, start, carried)
            size = _chunk_size(data, position, line_end)
            if size == 0:
                return self._last_chunk(data, start, line_end, carried)
            position = line_end + 4 + size
            if self.payload is not None:
                self._decode(data, line_end + 2, position)
        self._skip = position - length
        self.boundary = length - carried if position == length else start - carried
        return -1

    def rewind(self) -> None:
        self._skip = 0
        self._line = b""

    def at_boundary(self) -> bool:
        """Whether a new chunk could start right here."""
        return self._skip == 0 and not self._line

    def close_ends(self) -> bool:
        return False

    def _decode(self, data: bytes, start: int, end: int) -> None:
        """Keep what `data` has of a chunk between start and end, its CRLF at the end."""
        assert self.payload is not None
        self.payload += memoryview(data)[start : max(min(end - 2, len(data)), start)]
        if start <= end - 2 and end <= len(data) and data[end - 2 : end] != b"\r\n":
            raise BadFraming("a chunk is longer than its size")

    def _last_chunk(self, data: bytes, start: int, line_end: int, carried: int) -> int:
        if data.startswith(b"\r\n", line_end + 2):
            end = line_end + 4
        else:
            trailers_end = data.find(b"\r\n\r\n", line_end)
            if trailers_end < 0:
                return self._cut_off(data, start, carried)
            end = trailers_end + 4
        self._skip = 0
        self.boundary = end - carried
        return end - carried

    def _cut_off(self, data: bytes, start: int, carried: int) -> int:
        self._skip = 0
        self._line = data[start:]
        self.boundary = start - carried
        if len(self._line) > MAX_SIZE_LINE:
            raise BadFraming("a chunk's size line or trailers exceed 16 KiB")
        return -1


def _chunk_size(data: bytes, start: int, end: int) -> int:
    digits = data[start:end]
    if b";" in digits:
        digits = digits[: digits.index(b";")].rstrip()
    if not digits.isalnum() or digits[1:2] in _X:  # int() would take signs, blanks, underscores and 0x
        raise BadFraming("a chunk's size is not a hexadecimal number")
    try:
        return int(digits, 16)
    except ValueError:
        raise BadFraming("a chunk's size is not a hexadecimal number") from None
