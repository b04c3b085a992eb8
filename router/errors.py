"""Errors as OpenAI clients expect them: a status and a JSON body that says what to do.

Owns the form and the wire bytes of every answer that the router gives by itself.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec

REASONS = {status.value: status.phrase for status in HTTPStatus}


class Refusal(Exception):
    """A request that the router answers itself, with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        return msgspec.json.encode({"error": self._fields()})

    def response(self, *, close: bool, head_only: bool = False) -> bytes:
        extra = b"" if self.retry_after_s is None else b"retry-after: %d\r\n" % self.retry_after_s
        return json_response(self.status, self.body(), close=close, extra=extra, head_only=head_only)

    def sse_event(self) -> bytes:
        """The error as the last event of a stream that had begun."""
        return b"data: " + self.body() + b"\n\ndata: [DONE]\n\n"

    def _fields(self) -> dict[str, Any]:
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}


def unavailable(message: str, retry_after_s: int = 1) -> Refusal:
    """503: worth another try a little later."""
    return Refusal(503, message, code="no_replica_available", kind="server_error", retry_after_s=retry_after_s)


def internal_error() -> Refusal:
    """Our own fault; the log has the details."""
    message = "RadixGate failed to handle the request; its log says why."
    return Refusal(500, message, code="internal_error", kind="server_error")


def replica_failed(message: str, code: str = "replica_failed", status: int = 502) -> Refusal:
    """The replica broke its side of the exchange."""
    return Refusal(status, message, code=code, kind="server_error")


def model_not_found(model: str) -> Refusal:
    return Refusal(
        404,
        f"The model `{model}` does not exist here. GET /v1/models lists the models of this fleet.",
        code="model_not_found",
        param="model",
    )


def json_response(status: int, body: bytes, *, close: bool, extra: bytes = b"", head_only: bool = False) -> bytes:
    """A whole HTTP/1.1 response. `extra` holds complete header lines; `head_only` answers a HEAD request."""
    connection = b"connection: close\r\n" if close else b""
    head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s%s\r\n" % (
        status,
        REASONS.get(status, "").encode(),
        len(body),
        extra,
        connection,
    )
    return head if head_only else head + body
