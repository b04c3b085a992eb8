"""The order in which a plan's requests are due, as far as it can be told before a run.

Owns that estimate. A causal turn is due after an answer that nobody knows yet: answers are taken to need no time, so
that it is due at its session's start and the pauses up to it. In a closed loop, where starts do not count, a session
takes the place of the one that is done first, each request taking `CLOSED_TURN_S`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from loadgen.plans.plan import Plan, Session

CLOSED_TURN_S = 1.0


def in_order(plan: Plan) -> list[tuple[Session, int]]:
    """Session and turn of every request, by due time; those after the plan's end are left out of an open loop."""
    listed = [
        (due, number, turn)
        for number, start in enumerate(_starts(plan))
        for turn, due in enumerate(_dues(plan, plan.sessions[number], start))
        if plan.concurrency is not None or due < plan.duration_s
    ]
    listed.sort()
    return [(plan.sessions[number], turn) for _, number, turn in listed]


def _starts(plan: Plan) -> Iterator[float]:
    if plan.concurrency is None:
        yield from (session.start_s for session in plan.sessions)
        return
    places = [0.0] * plan.concurrency
    for session in plan.sessions:
        start = places[0]
        yield start
        *_, last = _dues(plan, session, start)
        heapq.heapreplace(places, last + CLOSED_TURN_S)


def _dues(plan: Plan, session: Session, start: float) -> Iterator[float]:
    """The first turn is due at the session's start, whatever its pause says."""
    due = start
    yield due
    for turn in session.turns[1:]:
        due += turn.think_s + (CLOSED_TURN_S if plan.concurrency is not None else 0.0)
        due = due if turn.due_s is None else turn.due_s
        yield due
