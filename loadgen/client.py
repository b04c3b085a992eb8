"""The open-loop client: sessions begin when the schedule says so, whatever the server does.

Owns the tasks of a run, and ends every one of them. Must never wait for the server before starting a session: a client
that slows down with its server hides the queueing it is there to measure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, Protocol

import aiohttp
import msgspec

from loadgen.answer import Answer, stream_answer
from loadgen.records import Record
from loadgen.workloads import Session

CONNECT_S = 5.0
# A request's body is made up to this long before it is due: making many long ones at once would send them late.
AHEAD_S = 1.0


class Schedule(Protocol):
    """What is asked and when, as plain data: the same whatever the server does, but for the answers it gave."""

    @property
    def path(self) -> str:
        """Where requests go, below the server's origin."""
        ...

    @property
    def duration_s(self) -> float: ...

    @property
    def sessions(self) -> Sequence[Session]:
        """By rising start."""
        ...

    def ask(self, session: Session, answers: Sequence[str]) -> dict[str, Any]:
        """The body of the turn that follows `answers`, without the fields that every request has."""
        ...


class OpenLoopClient:
    """Runs one schedule once against `base_url` (an origin, without /v1).

    Where several routers serve the same fleet, the others' origins are its `siblings`: requests go to each in turn.
    No request is sent after the schedule's duration; answers still under way then have `drain_s` seconds, after which
    they are cut off and recorded as errors. A failed request ends its session, since a next turn would need its answer.
    `on_record` hears of every finished request.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        schedule: Schedule,
        *,
        siblings: Sequence[str] = (),
        drain_s: float = 8.0,
        on_record: Callable[[Record], None] | None = None,
    ) -> None:
        self.records: list[Record] = []
        self.in_flight = 0
        self._urls = cycle([origin + schedule.path for origin in (base_url, *siblings)])
        self._model = model
        self._schedule = schedule
        self._drain_s = drain_s
        self._on_record = on_record
        self._origin = time.monotonic()

    async def run(self) -> list[Record]:
        """The records in order of their end. Ends at the latest `duration + drain_s` seconds after it began."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            self._origin = time.monotonic()
            try:
                async with asyncio.timeout(self._schedule.duration_s + self._drain_s), asyncio.TaskGroup() as sessions:
                    for session_id, session in enumerate(self._schedule.sessions):
                        await self._until(session.start_s - AHEAD_S)
                        sessions.create_task(self._converse(http, session_id, session))
            except TimeoutError:
                pass  # what was cut off has its record, with an error
        return self.records

    def now(self) -> float:
        """Seconds since the run began. Not the loop's clock: uvloop's has a resolution of a millisecond."""
        return time.monotonic() - self._origin

    async def _until(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - self.now()))

    async def _converse(self, http: aiohttp.ClientSession, session_id: int, session: Session) -> None:
        answers: list[str] = []
        due = session.start_s
        for turn in session.turns:
            due += turn.think_s
            if due >= self._schedule.duration_s:
                return
            body = self._body(session, answers)
            await self._until(due)
            answer = await self._ask(http, session_id, session, len(answers), body, due)
            if answer.error is not None:
                return
            answers.append(answer.text)
            due = self.now()

    async def _ask(
        self, http: aiohttp.ClientSession, session_id: int, session: Session, turn: int, body: bytes, due: float
    ) -> Answer:
        answer = Answer()
        sent = self.now()
        self.in_flight += 1
        try:
            await stream_answer(http, next(self._urls), body, self.now, answer)
        except asyncio.CancelledError:
            answer.fail(f"not finished {self._drain_s:g} s after the last request was due, or interrupted")
            raise
        finally:
            self.in_flight -= 1
            self._keep(answer.record(session_id, turn, session.document, due, sent, self.now()))
        return answer

    def _body(self, session: Session, answers: list[str]) -> bytes:
        every = {"model": self._model, "stream": True, "stream_options": {"include_usage": True}}
        return msgspec.json.encode(every | self._schedule.ask(session, answers))

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        if self._on_record is not None:
            self._on_record(record)
