"""The reader that judges answers takes nothing for good that is not: the faults' tests are worth what it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.chaos.fates import Attempt, Fate, Outage, judge

DONE = b"data: [DONE]\n\n"
LOST = {"error": {"message": "Replica direct failed", "type": "server_error", "param": None, "code": "replica_lost"}}


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(text: str, finish: str | None = None) -> bytes:
    return event({"choices": [{"delta": {"content": text}, "finish_reason": finish}]})


def whole(text: str = "Yes.", finish: str | None = "stop") -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}]}).encode()


USAGE = event({"choices": [], "usage": {"completion_tokens": 2}})


@pytest.mark.parametrize(
    ("stream", "body", "fate"),
    [
        (True, delta("Y") + delta("es", "stop") + USAGE + DONE, Fate.ANSWERED),
        (True, delta("Y") + delta("es", "stop") + USAGE, Fate.WRONG),
        (True, delta("Y") + USAGE + DONE, Fate.WRONG),
        (True, delta("Y", "stop") + DONE, Fate.WRONG),
        (True, delta("", "stop") + USAGE + DONE, Fate.WRONG),
        (True, delta("Y") + DONE[:-1], Fate.WRONG),
        (True, DONE, Fate.WRONG),
        (True, b"", Fate.WRONG),
        (True, delta("Y") + event(LOST) + DONE, Fate.LOST),
        (True, delta("Y") + b'data: {"choi\n\n' + event(LOST) + DONE, Fate.LOST),
        (True, delta("Y") + b'data: {"choi\n\n' + delta("es") + event(LOST) + DONE, Fate.WRONG),
        (True, delta("Y") + event(LOST), Fate.WRONG),
        (True, event(LOST) + DONE, Fate.WRONG),
        (True, delta("Y") + event({"error": {"message": "no", "code": "internal_error"}}) + DONE, Fate.WRONG),
        (False, whole(), Fate.ANSWERED),
        (False, whole(text=""), Fate.WRONG),
        (False, whole(finish=None), Fate.WRONG),
        (False, whole()[:-1], Fate.WRONG),
        (False, json.dumps(LOST).encode(), Fate.WRONG),
    ],
)
def test_what_an_answer_is_worth(stream: bool, body: bytes, fate: Fate) -> None:
    assert judge(stream, 200, body)[0] is fate


def test_an_answer_with_another_status_is_a_failure() -> None:
    assert judge(False, 503, whole())[0] is Fate.WRONG


def attempt(
    fate: Fate, *, router: str = "r0", replica: str = "direct", began: float = 1.0, ended: float = 2.0
) -> Attempt:
    return Attempt(router, replica, True, began, ended, fate)


@pytest.mark.parametrize(
    ("of", "broken", "excused"),
    [
        ("r0", attempt(Fate.CUT_OFF), True),
        ("r1", attempt(Fate.CUT_OFF), False),
        ("direct", attempt(Fate.CUT_OFF), False),
        ("r0", attempt(Fate.CUT_OFF, ended=1.4), False),
        ("r0", attempt(Fate.CUT_OFF, began=1.7), False),
        ("direct", attempt(Fate.LOST), True),
        ("double", attempt(Fate.LOST), False),
        ("r0", attempt(Fate.LOST), False),
        ("r0", attempt(Fate.WRONG), False),
    ],
)
def test_only_a_death_at_the_time_excuses_what_it_can_break(of: str, broken: Attempt, excused: bool) -> None:
    assert Outage(of, began=1.5, ended=1.6).excuses(broken) is excused
