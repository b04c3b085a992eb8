"""A plan as data: sessions, their turns, and the pieces of text that a turn asks with.

Owns these types and what can be said of a plan without making any text. Must never hold text or tokens: a plan of an
hour's trace is a few megabytes of numbers. Text is made of it by `prompts`.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Piece(msgspec.Struct, frozen=True, gc=False):
    """A stretch of a prompt.

    Equal `content` means equal text, a different one text that differs from its first token on. Of two pieces of equal
    content the shorter is a prefix of the longer. `tokens` is at least 1. `role` (system, user, assistant or tool)
    counts for prompts in chat form only.
    """

    content: int
    tokens: int
    role: str = "user"


class Turn(msgspec.Struct, frozen=True):
    """One request.

    `pieces` are what it adds to the conversation in a growing plan, and else the whole prompt. It is due `think_s`
    seconds after the end of the answer before it; or, where `due_s` is given, so many seconds after the run's start,
    whatever became of the turn before it.
    """

    pieces: tuple[Piece, ...]
    output_tokens: int
    think_s: float = 0.0
    due_s: float | None = None


class Session(msgspec.Struct, frozen=True):
    """Turns that follow one another. The first is due at `start_s`, seconds after the run's start.

    `group` is the document, tenant or kind of agent that it belongs to, for reports.
    """

    start_s: float
    turns: tuple[Turn, ...]
    group: int = 0


class Plan(msgspec.Struct, frozen=True):
    """All that is asked in a run. `parameters` can be written as JSON, and are enough to make the plan again.

    Sessions come by rising start. No request is due after `duration_s`. In a `growing` plan a prompt is the pieces and
    the answers of all turns before it, then its own pieces. With `concurrency` the loop is closed: so many sessions go
    on at once, the next begins when one ends, and their starts do not count.
    """

    workload: str
    seed: int
    parameters: dict[str, Any]
    duration_s: float
    sessions: tuple[Session, ...]
    growing: bool = False
    concurrency: int | None = None

    @property
    def requests(self) -> int:
        """How many requests there are if every session goes to its end and all are due in time."""
        return sum(len(session.turns) for session in self.sessions)
