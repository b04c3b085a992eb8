"""The runner: asks a plan of a target, each request when it is due, whatever the server does.

Owns the tasks of a run, and ends every one of them. Must never wait for the server before it sends what is due: a
client that slows down with its server hides the queueing it is there to measure. How late it was is in every record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from loadgen.plans.plan import Plan, Session
from loadgen.records import Record
from loadgen.runs.sender import AHEAD_S, Asks, Sender
from loadgen.runs.target import Target

DRAIN_S = 30.0


class Runner:
    """Runs `plan` once against `target`.

    In an open loop each session begins at its start; in a closed loop `plan.concurrency` sessions go on at once. No
    request is sent after the plan's duration; answers still under way then have `drain_s` seconds, after which they are
    cut off and recorded as errors. A failed request ends its session, but for turns that have a time of their own.

    `on_record` hears of every finished request. `session_header`, when given, is the name of a header that tells the
    server which requests belong together. Raises ValueError for a URL or a header that is none.
    """

    def __init__(
        self,
        target: Target,
        plan: Plan,
        prompts: Asks,
        *,
        drain_s: float = DRAIN_S,
        on_record: Callable[[Record], None] | None = None,
        session_header: str | None = None,
    ) -> None:
        self.target = target
        self.plan = plan
        self.records: list[Record] = []
        self.interrupted: str | None = None
        self._drain_s = drain_s
        self._on_record = on_record
        self._sender = Sender(target, prompts, self._keep, session_header)
        self._bound: asyncio.Timeout | None = None

    @property
    def in_flight(self) -> int:
        return self._sender.in_flight

    @property
    def sent(self) -> int:
        return self._sender.sent

    @property
    def mark(self) -> str:
        """What the ids of this run's requests begin with."""
        return self._sender.mark

    def now(self) -> float:
        """Seconds since the run began."""
        return self._sender.now()

    async def run(self) -> list[Record]:
        """The records in order of their end. Ends at the latest `duration + drain_s` seconds after it began."""
        self._sender.begin()
        self._sender.cut_off = f"cut off: not finished {self._drain_s:g} s after the last request could be due"
        try:
            async with asyncio.timeout(self.plan.duration_s + self._drain_s) as self._bound:
                if self.interrupted is None:
                    await (self._open_loop() if self.plan.concurrency is None else self._closed_loop())
        except TimeoutError:
            pass  # what was cut off has its record, with an error
        finally:
            self._bound = None
            await self._sender.close()
        return self.records

    def stop(self, reason: str) -> None:
        """Ends the run now: nothing more is sent, and answers under way are cut off and recorded as errors."""
        if self.interrupted is not None:
            return
        self.interrupted = reason
        self._sender.cut_off = f"cut off: {reason}"
        if self._bound is not None and not self._bound.expired():
            self._bound.reschedule(asyncio.get_running_loop().time())

    async def _open_loop(self) -> None:
        async with asyncio.TaskGroup() as sessions:
            for number, session in enumerate(self.plan.sessions):
                await self._sender.until(session.start_s - AHEAD_S)
                sessions.create_task(_Conversation(self._sender, self.plan, number, session).go_on(session.start_s))

    async def _closed_loop(self) -> None:
        """Each place takes the next session as soon as the one before it has ended there."""
        waiting = iter(enumerate(self.plan.sessions))
        async with asyncio.TaskGroup() as places:
            for _ in range(self.plan.concurrency or 0):
                places.create_task(self._place(waiting))

    async def _place(self, waiting: Iterator[tuple[int, Session]]) -> None:
        for number, session in waiting:
            if self.now() >= self.plan.duration_s:
                return
            await _Conversation(self._sender, self.plan, number, session).go_on(None)

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        if self._on_record is not None:
            self._on_record(record)


class _Conversation:
    """One session under way."""

    def __init__(self, sender: Sender, plan: Plan, number: int, session: Session) -> None:
        self._sender = sender
        self._end_s = plan.duration_s
        self._number = number
        self._session = session
        self._answers = [""] * len(session.turns)

    async def go_on(self, start_s: float | None) -> None:
        """To the session's end, the run's end or the first failure that matters.

        Without a start (in a closed loop) the first turn is due at once, and no turn has a time of its own.
        """
        before: asyncio.Task[float | None] | None = None
        async with asyncio.TaskGroup() as turns:
            for number, turn in enumerate(self._session.turns):
                due = turn.due_s if number and start_s is not None else start_s
                if due is not None:
                    if due < self._end_s:
                        await self._sender.until(due - AHEAD_S)
                elif before is not None:
                    if (end := await before) is None:
                        return
                    due = end + turn.think_s
                if due is not None and due >= self._end_s:
                    return
                before = turns.create_task(self._turn(number, due))

    async def _turn(self, number: int, due: float | None) -> float | None:
        """When the answer ended; None when it failed, or came too late to be asked for."""
        request = await self._sender.make(self._number, self._session, number, self._answers, due)
        if due is None and self._sender.now() >= self._end_s:
            return None
        record, text = await self._sender.send(request, due)
        self._answers[number] = text
        return None if record.error else record.end
