"""What can become of a request, told from the bytes that came back.

A strict reader: whatever is not a whole answer in every detail, or one of the two ends that a killed process excuses,
is WRONG.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

DONE = b"[DONE]"


class Fate(Enum):
    """ANSWERED: whole. LOST: a stream that had begun ended as the README says it does when its replica dies. CUT_OFF:
    no connection, or it broke before the answer was whole. WRONG: anything else.
    """

    ANSWERED = auto()
    LOST = auto()
    CUT_OFF = auto()
    WRONG = auto()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request at one router. Times by time.monotonic(); `replica` is empty where no answer named it."""

    router: str
    replica: str
    stream: bool
    began: float
    ended: float
    fate: Fate
    detail: str = ""


@dataclass(slots=True)
class Outage:
    """A router or a replica is dead; `ended` is when it was ready again."""

    of: str
    began: float
    ended: float = float("inf")

    def excuses(self, attempt: Attempt) -> bool:
        """A router that dies breaks the requests on its connections, a replica the streams that it had begun."""
        meanwhile = attempt.began <= self.ended and self.began <= attempt.ended
        router = attempt.fate is Fate.CUT_OFF and attempt.router == self.of
        replica = attempt.fate is Fate.LOST and attempt.replica == self.of
        return meanwhile and (router or replica)


def judge(stream: bool, status: int, body: bytes) -> tuple[Fate, str]:
    """The fate of a request whose response came to its end as HTTP sees it, and what is wrong with it."""
    if status != 200:
        return Fate.WRONG, f"status {status}: {body[:300]!r}"
    try:
        return _stream(body) if stream else _whole(json.loads(body))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return Fate.WRONG, f"{error!r} in {body[-300:]!r}"


def _whole(answer: dict[str, Any]) -> tuple[Fate, str]:
    (choice,) = answer["choices"]
    if choice["finish_reason"] not in ("stop", "length") or not choice["message"]["content"]:
        return Fate.WRONG, f"not a whole answer: {choice}"
    return Fate.ANSWERED, ""


def _stream(body: bytes) -> tuple[Fate, str]:
    if not body.endswith(b"\n\n"):
        return Fate.WRONG, f"the stream ends within an event: {body[-300:]!r}"
    events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n")[:-1] if event]
    *events, last = events
    if last != DONE:
        return Fate.WRONG, f"the stream does not end with [DONE]: {last!r}"
    if b'"error"' in events[-1]:
        return _error_event(events)
    chunks = [json.loads(event) for event in events]
    text = "".join(_delta(chunk).get("content") or "" for chunk in chunks)
    *_, finish, usage = chunks
    if not text or finish["choices"][0]["finish_reason"] not in ("stop", "length") or not usage["usage"]:
        return Fate.WRONG, f"not a whole stream: {body[-600:]!r}"
    return Fate.ANSWERED, ""


def _error_event(events: list[bytes]) -> tuple[Fate, str]:
    """Before it there may be one event that the replica left half-written."""
    error = json.loads(events[-1])["error"]
    for event in events[:-2]:
        _delta(json.loads(event))
    if error["code"] != "replica_lost" or len(events) < 2:
        return Fate.WRONG, f"the stream ended with {error}"
    return Fate.LOST, error["message"]


def _delta(chunk: dict[str, Any]) -> dict[str, Any]:
    choices = chunk["choices"]
    return choices[0]["delta"] if choices else {}
