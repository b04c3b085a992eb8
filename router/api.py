"""What a request asks for: the few fields of an OpenAI request body that routing needs, decoded once, by type.

Owns the reading of bodies. Must never change one: the body itself goes to the replica byte for byte.
"""

from __future__ import annotations

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
    user: str | None = None
    session_id: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class BadBody(ValueError):
    """The body cannot be routed; the message says what to change, `param` names the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


_decoder = msgspec.json.Decoder(Ask)


def read_ask(path: str, body: bytes) -> Ask:
    """Raises BadBody for anything but an object with a model and a prompt of the path's kind."""
    try:
        ask = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BadBody(f"The request body has a field of the wrong type: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadBody(f"The request body is not valid JSON: {error}.") from None
    if not ask.model:
        raise BadBody("You must provide a model parameter.", "model")
    if path == CHAT:
        if memoryview(ask.messages)[:1].tobytes() != b"[":
            raise BadBody("You must provide `messages` as a list of messages.", "messages")
    elif not len(ask.prompt):
        raise BadBody("You must provide a prompt.", "prompt")
    return ask
