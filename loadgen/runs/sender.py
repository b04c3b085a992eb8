"""The sender: makes a request ready ahead of time, sends it when it is due, and writes down what came of it.

Owns the clock of a run and the way of a single request. Must never decide which requests there are: `runner.py` does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

import msgspec

from loadgen.answer import REQUEST_ID_HEADER, Answer
from loadgen.plans.plan import Session
from loadgen.records import Record
from loadgen.runs.target import Target
from loadgen.runs.wire import CannotConnect, Connection, Origin, header_lines

# A request's body is made up to this long before it is due: making many long ones at once would send them late.
AHEAD_S = 2.0
# Its connection is open this long before.
CONNECT_AHEAD_S = 0.1
CUT_OFF = "cut off: the run ended before the answer did"


class Asks(Protocol):
    """What is needed of `plans.prompts.Prompts`."""

    @property
    def path(self) -> str: ...

    def body(self, session: Session, turn: int, answers: Sequence[str]) -> dict[str, Any]: ...

    def prompt_tokens(self, session: Session, turn: int) -> int: ...


class Request(NamedTuple):
    """One turn of a session, ready to be sent."""

    number: int
    session: Session
    turn: int
    prompt_tokens: int
    body: bytes


class Sender:
    """`session_header`, when given, is the name of a header that tells the server which requests belong together.

    Raises ValueError for a URL or a header that is none.
    """

    def __init__(
        self, target: Target, prompts: Asks, on_record: Callable[[Record], None], session_header: str | None = None
    ) -> None:
        self.in_flight = 0
        self.sent = 0
        # Begins every request's id: what the server says of this run can be told from everything else.
        self.mark = f"bench-{uuid4().hex[:12]}-"
        self.cut_off = CUT_OFF
        self._prompts = prompts
        self._on_record = on_record
        self._session_header = session_header
        header_lines({session_header: ""} if session_header else {})
        self._origins = [Origin(url, prompts.path, target.headers, self.now) for url in target.urls]
        self._turns = cycle(self._origins)
        self._every = every_body(target.model)
        self._making = asyncio.Lock()
        self._began = time.monotonic()

    def begin(self) -> None:
        """The run's time starts now."""
        self._began = time.monotonic()

    def now(self) -> float:
        """Seconds since the run began. Not the loop's clock: uvloop's has a resolution of a millisecond."""
        return time.monotonic() - self._began

    async def until(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - self.now()))

    async def close(self) -> None:
        for origin in self._origins:
            await origin.close()

    async def make(
        self, number: int, session: Session, turn: int, answers: Sequence[str], due: float | None
    ) -> Request:
        """The request, which is due then (None: now).

        What is made ahead is made one at a time, and as long as there is time enough, half of it is left to requests
        and answers under way.
        """
        if due is None or due - self.now() < CONNECT_AHEAD_S:
            return self._make(number, session, turn, answers)
        async with self._making:
            began = self.now()
            request = self._make(number, session, turn, answers)
            now = self.now()
            await asyncio.sleep(now - began if due - now > AHEAD_S / 2 else 0)
            return request

    async def send(self, request: Request, due: float | None) -> tuple[Record, str]:
        """Sends it when it is due (None: now); its record and the text of the answer, once that has ended."""
        origin = next(self._turns)
        request_id = f"{self.mark}{request.number}.{request.turn}"
        headers = {REQUEST_ID_HEADER: request_id}
        if self._session_header:
            headers[self._session_header] = f"{self.mark}{request.number}"
        data = origin.request(request.body, headers)
        connection = None
        if due is not None:
            await self.until(due - CONNECT_AHEAD_S)
            connection = await self._connection(origin, due)
            await self.until(due)
        answer = Answer()
        answer.request_id = request_id
        sent = self.now()
        self.in_flight += 1
        self.sent += 1
        try:
            await origin.ask(data, answer, connection)
        except asyncio.CancelledError:
            answer.fail(self.cut_off)
            raise
        finally:
            self.in_flight -= 1
            session, turn = request.session, request.turn
            record = answer.record(
                request.number,
                turn,
                session.group,
                due=sent if due is None else due,
                sent=sent,
                end=self.now(),
                planned_prompt_tokens=request.prompt_tokens,
                planned_output_tokens=session.turns[turn].output_tokens,
            )
            self._on_record(record)
        return record, answer.text

    def _make(self, number: int, session: Session, turn: int, answers: Sequence[str]) -> Request:
        body = msgspec.json.encode(self._every | self._prompts.body(session, turn, answers))
        return Request(number, session, turn, self._prompts.prompt_tokens(session, turn), body)

    async def _connection(self, origin: Origin, due: float) -> Connection | None:
        """One that is open before the request is due, if there can be: else it is opened in the request's own time."""
        try:
            async with asyncio.timeout(max(0.0, due - self.now())):
                return await origin.connection()
        except (CannotConnect, TimeoutError):
            return None


def every_body(model: str) -> dict[str, Any]:
    """The fields that every request has."""
    return {"model": model, "stream": True, "stream_options": {"include_usage": True}}
