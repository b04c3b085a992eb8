"""The answer of an OpenAI-compatible server, read as it arrives.

Owns the reading of server-sent events and what counts as a failure. Must never know how bytes come: `runs/wire.py`
does.
"""

from __future__ import annotations

from typing import Any

import msgspec

from loadgen.records import Record

REQUEST_ID_HEADER = "x-request-id"
DONE = b"[DONE]"


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    """A chat's piece of text comes as `delta`, a completion's as `text`."""

    delta: _Delta = msgspec.field(default_factory=_Delta)
    text: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class Answer:
    """What has come of one answer so far. `error` stays None until the answer failed; `done` is set by `[DONE]`."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.token_times: list[float] = []
        self.status = 0
        self.replica = ""
        self.request_id = ""
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.reports_cached = False
        self.completion_tokens = 0
        self.done = False
        self.error: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def take(self, data: bytes, now: float) -> None:
        """Accounts for the payload of one event that arrived at `now`."""
        if data == DONE:
            self.done = True
            return
        try:
            chunk = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.fail(f"the stream carried an event that is no completion chunk: {error}")
            return
        if chunk.error is not None:
            self.fail(f"the stream ended with an error event: {_message(chunk.error)}")
        if chunk.usage is not None:
            self._count(chunk.usage)
        for choice in chunk.choices:
            if text := choice.delta.content or choice.text:
                self.parts.append(text)
                self.token_times.append(now)

    def record(
        self,
        session: int,
        turn: int,
        group: int,
        due: float,
        sent: float,
        end: float,
        planned_prompt_tokens: int = 0,
        planned_output_tokens: int = 0,
    ) -> Record:
        """What the client saw, as it is kept: of which request, and when it was due, left and ended."""
        return Record(
            session=session,
            turn=turn,
            due=due,
            sent=sent,
            end=end,
            token_times=tuple(self.token_times),
            status=self.status,
            error=self.error or "",
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            replica=self.replica,
            request_id=self.request_id,
            group=group,
            planned_prompt_tokens=planned_prompt_tokens,
            planned_output_tokens=planned_output_tokens,
            reports_cached=self.reports_cached,
        )

    def fail(self, reason: str) -> None:
        """Keeps the first reason: what follows a failure is its consequence."""
        if self.error is None:
            self.error = reason

    def refuse(self, status: int, body: bytes) -> None:
        """The server answered with another status than 200."""
        self.fail(f"HTTP {status}: {_body_message(body)}")

    def end(self) -> None:
        """The response came to its end: it must have been whole."""
        if not self.done:
            self.fail("the stream ended without [DONE]")

    def _count(self, usage: _Usage) -> None:
        self.prompt_tokens = usage.prompt_tokens
        self.completion_tokens = usage.completion_tokens
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
        self.cached_tokens, self.reports_cached = cached or 0, cached is not None


class EventReader:
    """Cuts a byte stream into the payloads of its `data:` lines. OpenAI's servers send one such line an event."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


def _body_message(body: bytes) -> str:
    try:
        error = _decoder.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        error = None
    return body[:200].decode(errors="replace") if error is None else _message(error)


def _message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
