"""The response's head: read for what the relay needs, and passed on to the client.

Owns which header lines of a response cross the proxy: all but the hop-by-hop ones (RFC 9110, 7.6.1), unchanged and in
order. Must never look at a body.
"""

from __future__ import annotations

import re

import msgspec

_HOP_BY_HOP_LINES = re.compile(rb"(?i)\r\n(?:connection|keep-alive|proxy-connection|upgrade):[^\r\n]*")
_TRANSFER_LINES = re.compile(rb"(?i)\r\n(?:transfer-encoding|trailer):[^\r\n]*")
_CONNECTION = re.compile(rb"\r\nconnection:([^\r\n]*)")
_SPECIAL = re.compile(
    rb"\r\n(?:transfer-encoding:|connection:|keep-alive:|upgrade:|x-radixgate-cached-tokens:"
    rb"|content-type:[ \t]*text/event-stream)"
)


class BadHead(ValueError):
    """The replica's response head cannot be understood."""


class ResponseHead(msgspec.Struct, gc=False):
    """What the relay needs of a response's head. `length` is None unless Content-Length says it."""

    status: int
    chunked: bool = False
    length: int | None = None
    keep_alive: bool = True
    event_stream: bool = False
    cached_tokens: int | None = None
    plain: bool = True  # no hop-by-hop lines to take out


def read_response_head(head: bytes) -> ResponseHead:
    """Reads a head of lines each ended by CRLF. Raises BadHead."""
    status = head[9:12]
    if head[:7] != b"HTTP/1." or not status.isdigit():
        raise BadHead("the status line is not HTTP/1.x")
    lower = head.lower()
    read = ResponseHead(int(status))
    at = lower.find(b"\r\ncontent-length:")
    if at >= 0:
        read.length = _number(lower, at + 17)
    if head[7:8] != b"1" or _SPECIAL.search(lower) is not None:
        _read_special(read, lower)
    return read


def _read_special(read: ResponseHead, lower: bytes) -> None:
    """What most responses do not have."""
    at = lower.find(b"\r\ntransfer-encoding:")
    if at >= 0:
        if read.length is not None:
            raise BadHead("both Content-Length and Transfer-Encoding")
        if _value(lower, at + 20) != b"chunked":
            raise BadHead("a transfer encoding other than chunked")
        read.chunked = True
    tokens = [token.strip() for line in _CONNECTION.findall(lower) for token in line.split(b",")]
    read.plain = not tokens and b"\r\nkeep-alive:" not in lower and b"\r\nupgrade:" not in lower
    read.keep_alive = b"close" not in tokens and (lower[7:8] == b"1" or b"keep-alive" in tokens)
    at = lower.find(b"\r\ncontent-type:")
    read.event_stream = at >= 0 and _value(lower, at + 15).startswith(b"text/event-stream")
    at = lower.find(b"\r\nx-radixgate-cached-tokens:")
    if at >= 0:
        cached = _value(lower, at + 28)
        read.cached_tokens = int(cached) if cached.isdigit() and len(cached) < 10 else None


def relayed_head(head: bytes, extra: bytes, read: ResponseHead, *, dechunk: bool = False) -> bytes:
    """The response head for the client: hop-by-hop lines out, `extra` lines in, the blank line at the end."""
    if not read.plain:
        head = _HOP_BY_HOP_LINES.sub(b"", head)
    if dechunk:
        head = _TRANSFER_LINES.sub(b"", head)
    return head + extra + b"\r\n"


def _value(lower: bytes, start: int) -> bytes:
    return lower[start : lower.index(b"\r\n", start)].strip()


def _number(lower: bytes, start: int) -> int:
    value = _value(lower, start)
    if not value.isdigit():
        raise BadHead("a header line that must hold a number does not")
    return int(value)
