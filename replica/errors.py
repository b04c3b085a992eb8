"""What a client did wrong, or what went wrong for it, in OpenAI's words.

Owns the form of errors. Every answer of the server that is no success is made here.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
MODEL_NOT_FOUND = "model_not_found"
UNSUPPORTED = "unsupported_parameter"


class ApiError(Exception):
    """An answer with an error in it. `param` names the field at fault, `code` is for programs to read."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code

    def body(self) -> bytes:
        """The JSON of the answer's body."""
        return error_body(self.status, self.message, self.param, self.code)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> bytes:
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def unsupported(param: str, what: str) -> ApiError:
    """For what this server knows and does not do, where ignoring it would give a wrong answer."""
    return ApiError(f"This replica does not support {what}.", param=param, code=UNSUPPORTED)
