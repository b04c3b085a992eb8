"""A client's request: its head read from raw bytes, its body collected.

Owns which requests are well-formed (httptools decides, strictly) and which of their header lines cross the proxy.
Hop-by-hop lines never do (RFC 9110, 7.6.1); everything else does, unchanged and in order. The common head is
forwarded as the client wrote it, with one line cut out; only a head with special lines is taken apart.
"""

from __future__ import annotations

import re

import httptools
import msgspec

from router.errors import Refusal
from router.framing import BadFraming, ChunkedFraming

MAX_REQUEST_ID = 256
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_SPECIAL = re.compile(
    rb"\r\n(?:connection|keep-alive|proxy-[a-z]+|te|trailer|transfer-encoding|upgrade|http2-settings|expect"
    rb"|x-forwarded-for|x-request-id|x-session-id):"
)
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)


class Request(msgspec.Struct):
    """One request. `lines` are the header lines for the replica, each ended by CRLF, without Host. The connection of an
    HTTP/1.0 request is never kept.
    """

    method: bytes
    target: bytes
    lines: bytes = b""
    http10: bool = False
    keep_alive: bool = True
    length: int = 0
    chunked: bool = False
    expects_continue: bool = False
    forwarded_for: bytes = b""
    request_id: str | None = None
    session: str | None = None
    body: bytes = b""

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    @property
    def head_only(self) -> bool:
        return self.method == b"HEAD"


class _Nobody:
    """The parser validates; nobody needs its callbacks."""


_NOBODY = _Nobody()


def check_head(head: bytes) -> None:
    """Raises Refusal (400) when `head`, whole or the beginning of one, is not HTTP/1."""
    try:
        httptools.HttpRequestParser(_NOBODY).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # a server may decline an upgrade by answering as if it had not been asked (RFC 9110, 7.8)
    except httptools.HttpParserError as error:
        raise Refusal(400, f"The request is not valid HTTP/1.1: {error}.", code="bad_request") from None


def read_head(head: bytes) -> Request:
    """Reads a whole head, its blank line included. Raises Refusal."""
    check_head(head)
    first = head.find(b"\r\n")
    words = head[:first].split(b" ")
    if len(words) != 3 or words[2][:7] != b"HTTP/1.":
        raise Refusal(400, "The request line is not `METHOD TARGET HTTP/1.1`.", code="bad_request")
    request = Request(words[0], words[1])
    if words[1][:1] != b"/":
        request.target = _origin_form(words[1])
    if words[2] == b"HTTP/1.0":
        request.http10 = True
        request.keep_alive = False
    lower = head.lower()
    if _SPECIAL.search(lower, first) is not None:
        _take_apart(request, head[first + 2 : -2])
    else:
        request.lines = _without_host(head, lower, first)
        at = lower.find(b"\r\ncontent-length:", first)
        if at >= 0:
            request.length = int(lower[at + 17 : lower.index(b"\r\n", at + 17)])
    return request


class ChunkedBody:
    """A request body sent in chunks, decoded."""

    __slots__ = ("_framing",)

    def __init__(self) -> None:
        self._framing = ChunkedFraming()
        self._framing.payload = bytearray()

    def feed(self, data: bytes) -> int:
        """The offset just past the body, or -1 while more is to come. Raises Refusal."""
        try:
            return self._framing.feed(data)
        except BadFraming as error:
            raise Refusal(400, f"The chunked request body is malformed: {error}.", code="bad_request") from None

    @property
    def size(self) -> int:
        """Bytes decoded so far."""
        return len(self._framing.payload or b"")

    def decoded(self) -> bytes:
        return bytes(self._framing.payload or b"")


def _without_host(head: bytes, lower: bytes, first: int) -> bytes:
    at = lower.find(b"\r\nhost:", first)
    if at < 0:
        return head[first + 2 : -2]
    if lower.find(b"\r\nhost:", at + 6) >= 0:
        raise Refusal(400, "The request has more than one Host header.", code="bad_request")
    return head[first + 2 : at + 2] + head[head.index(b"\r\n", at + 2) + 2 : -2]


def _take_apart(request: Request, lines: bytes) -> None:
    """The header lines one by one: some speak to this proxy, the others go on."""
    kept = []
    hosts = 0
    dropped = _HOP_BY_HOP
    for line in lines.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        match name.lower():
            case b"connection":
                tokens = frozenset(token.strip().lower() for token in value.split(b","))
                # A length that counts here must count at the replica too, whatever Connection says of it.
                dropped |= tokens - {b"content-length"}
                request.keep_alive = request.keep_alive and b"close" not in tokens
            case b"content-length":
                request.length = int(value)
                kept.append(line)
            case b"transfer-encoding":
                if value.strip().lower() != b"chunked":
                    raise Refusal(501, "The only transfer encoding RadixGate reads is chunked.")
                if request.http10:
                    raise Refusal(400, "HTTP/1.0 has no Transfer-Encoding.", code="bad_request")
                request.chunked = True
            case b"expect":
                if value.strip().lower() != b"100-continue":
                    raise Refusal(417, "The only expectation RadixGate meets is 100-continue.")
                request.expects_continue = not request.http10
            case b"x-forwarded-for":
                request.forwarded_for += value.strip() + b", "
            case b"x-request-id":
                request.request_id = value.strip()[:MAX_REQUEST_ID].decode("latin-1")
                kept.append(line)
            case b"x-session-id":
                request.session = value.strip().decode("latin-1")
                kept.append(line)
            case b"host":
                hosts += 1
            case _:
                kept.append(line)
    if hosts > 1:
        raise Refusal(400, "The request has more than one Host header.", code="bad_request")
    request.lines = b"".join(line + b"\r\n" for line in kept if line.partition(b":")[0].lower() not in dropped)


def _origin_form(target: bytes) -> bytes:
    """`http://host/path` is asked of proxies; a replica is asked for `/path`. `*` stays (OPTIONS)."""
    if target[:7].lower() in (b"http://", b"https:/"):
        authority, slash, path = target.partition(b"://")[2].partition(b"/")
        _, question, query = authority.partition(b"?")
        if question:  # http://host?query, with no path
            return b"/?" + query + slash + path
        return b"/" + path
    return target
