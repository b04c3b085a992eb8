"""What a request asks for: the few fields of an OpenAI request body that routing needs, decoded once, by type.

Owns the reading of bodies. Must never change one: the body itself goes to the replica byte for byte.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class Ask(msgspec.Struct, gc=False):
    """The routing view of a request. `messages`, `prompt` and `tools` stay raw JSON until something needs them."""

    model: str = ""
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    stream: bool | None = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    cache_salt: str | None = None
    user: Any = None
    session_id: Any = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def session(self) -> str | None:
        """Who asks, if the request says it as text."""
        name = self.session_id or self.user
        return name if isinstance(name, str) else None


class BadBody(ValueError):
    """The body cannot be routed; the message says what to change, `param` names the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


# Names are kept in tables: longer ones are refused rather than kept.
MAX_MODEL = 512
MAX_SALT = 1024
RAW_FIELDS = ("messages", "prompt", "tools")

# Not strict: an engine may well take "5" or 5.0 for a number, and it is the engine's to judge.
_decoder = msgspec.json.Decoder(Ask, strict=False)


def read_ask(path: str, body: bytes) -> Ask:
    """Raises BadBody for anything but an object with a model and a prompt of the path's kind."""
    try:
        ask = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BadBody(f"The request body has a field of the wrong type: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        ask = _read_odd(body, error)
    if not ask.model:
        raise BadBody("You must provide a model parameter.", "model")
    if len(ask.model) > MAX_MODEL:
        raise BadBody(f"The model name is longer than {MAX_MODEL} characters.", "model")
    if ask.cache_salt is not None and len(ask.cache_salt) > MAX_SALT:
        raise BadBody(f"The cache_salt is longer than {MAX_SALT} characters.", "cache_salt")
    if path == CHAT:
        if memoryview(ask.messages)[:1].tobytes() != b"[":
            raise BadBody("You must provide `messages` as a list of messages.", "messages")
    elif not len(ask.prompt):
        raise BadBody("You must provide a prompt.", "prompt")
    return ask


def _read_odd(body: bytes, error: Exception) -> Ask:
    """Python's own reader takes what a strict one does not (a lone surrogate, NaN), and so do engines that use it."""
    try:
        fields = json.loads(body)
        raw = {name: msgspec.Raw(json.dumps(fields[name]).encode()) for name in RAW_FIELDS if name in fields}
        return msgspec.convert({**fields, **raw}, type=Ask, strict=False)
    except msgspec.ValidationError as odd:
        raise BadBody(f"The request body has a field of the wrong type: {odd}.") from None
    except (ValueError, TypeError, RecursionError):
        raise BadBody(f"The request body is not valid JSON: {error}.") from None
