"""What clients get: OpenAI's response bodies and stream chunks, for chats and for completions.

Owns their form. Must never decide what is in an answer.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from radix.pieces import TokenPieces
from replica.generation import Output
from replica.logprobs import ForCompletion, for_chat
from replica.request import Finish, Request

# Tokens and log probabilities that are written at once: it takes a few milliseconds.
_FEW_ENTRIES = 2000

DONE = b"data: [DONE]\n\n"


class Form(ABC):
    """The shape of one response. Subclasses say how a choice looks."""

    prefix = ""
    kind = ""
    chunk_kind = ""

    def __init__(self, model: str, request_id: str, with_usage: bool, pieces: TokenPieces) -> None:
        self._model = model
        self._pieces = pieces
        self._id = f"{self.prefix}-{request_id}"
        self._created = int(time.time())
        self.with_usage = with_usage

    def whole(self, answers: Iterable[Output], requests: Sequence[Request]) -> bytes:
        """The body of a response that is not streamed; may be called on any thread."""
        # One answer encoded after the other: with log probabilities each is far larger before than after.
        choices = [msgspec.Raw(msgspec.json.encode(self.choice(*answer))) for answer in enumerate(answers)]
        return msgspec.json.encode(self._envelope(self.kind, choices) | {"usage": usage(requests)})

    def opening(self, index: int) -> bytes:
        """What a stream says before the first text of an answer."""
        return b""

    def chunk(self, index: int, output: Output) -> bytes:
        """One event of a stream; nothing when the output has nothing to show."""
        if not (output.text or output.finish or output.logprobs):
            return b""
        return self._event([self.delta(index, output)], None)

    def usage_chunk(self, requests: Sequence[Request]) -> bytes:
        """The last event of a stream, where the client asked for usage."""
        return self._event([], usage(requests))

    @abstractmethod
    def choice(self, index: int, answer: Output) -> dict[str, Any]:
        """One answer of a response that is not streamed."""

    @abstractmethod
    def delta(self, index: int, output: Output) -> dict[str, Any]:
        """One answer's part of a stream's event."""

    def _event(self, choices: list[dict[str, Any]], used: dict[str, Any] | None) -> bytes:
        envelope = self._envelope(self.chunk_kind, choices)
        if self.with_usage:
            envelope["usage"] = used
        return sse(msgspec.json.encode(envelope))

    def _envelope(self, kind: str, choices: Sequence[object]) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model, "choices": choices}


class ChatForm(Form):
    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def opening(self, index: int) -> bytes:
        return self._event([_streamed(index, {"role": "assistant", "content": ""}, None, None)], None)

    def choice(self, index: int, answer: Output) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(answer),
            "finish_reason": _reason(answer.finish),
        }

    def delta(self, index: int, output: Output) -> dict[str, Any]:
        delta = {"content": output.text} if output.text else {}
        return _streamed(index, delta, self._logprobs(output), output.finish)

    def _logprobs(self, output: Output) -> dict[str, Any] | None:
        return for_chat(output.tokens, output.logprobs, self._pieces) if output.logprobs else None


class CompletionForm(Form):
    prefix = "cmpl"
    kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(self, model: str, request_id: str, with_usage: bool, pieces: TokenPieces) -> None:
        super().__init__(model, request_id, with_usage, pieces)
        self._logprobs: dict[int, ForCompletion] = {}

    def choice(self, index: int, answer: Output) -> dict[str, Any]:
        return self.delta(index, answer)

    def delta(self, index: int, output: Output) -> dict[str, Any]:
        logprobs = None
        if output.logprobs:
            answer = self._logprobs.setdefault(index, ForCompletion(self._pieces))
            logprobs = answer.part(output.tokens, output.logprobs)
        return {"index": index, "text": output.text, "logprobs": logprobs, "finish_reason": _reason(output.finish)}


async def whole_body(form: Form, parts: Iterable[Sequence[Output]], requests: Sequence[Request]) -> bytes:
    """The body of a response that is not streamed, from all that its answers grew by.

    A long one is written on a thread: others get their tokens meanwhile.
    """

    def write() -> bytes:
        return form.whole(map(joined, parts), requests)

    entries = sum(request.output_tokens * (1 + (request.sampling.logprobs or 0)) for request in requests)
    return write() if entries <= _FEW_ENTRIES else await asyncio.to_thread(write)


def usage(requests: Sequence[Request]) -> dict[str, Any]:
    """Tokens of a response. A prompt counts once, however many answers it got."""
    firsts = [request for request in requests if request.variant == 0]
    prompt = sum(request.prompt_tokens for request in firsts)
    cached = sum(request.cached or 0 for request in firsts)
    output = sum(request.output_tokens for request in requests)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def sse(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"


def joined(parts: Sequence[Output]) -> Output:
    """A whole answer, from all that it grew by."""
    return Output(
        tuple(token for part in parts for token in part.tokens),
        "".join(part.text for part in parts),
        parts[-1].finish,
        tuple(found for part in parts for found in part.logprobs),
    )


def _streamed(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish: Finish | None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": _reason(finish)}


def _reason(finish: Finish | None) -> str | None:
    return finish.value if finish else None
