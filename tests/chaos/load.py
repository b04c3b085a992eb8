"""Steady traffic through every router, and the books of what became of each request.

Clients that know all routers, as behind a load balancer: each goes round them, repeats what a dead process broke at the
next one, and leaves a router aside whose connections broke until it is said to be ready again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import aiohttp

from tests.chaos.background import Background
from tests.chaos.fates import Attempt, Fate, Outage, judge

CLIENTS = 9
THINK_S = 0.05
DOCUMENTS = 48  # more than all replicas together can hold
MODEL = "m"
TRIES = 5
PATIENCE_S = 60.0  # for a whole answer; a replica that is paused keeps its clients waiting


class Load:
    """`start`, then `finish`: everything asked has been answered, or is in the books as `unanswered`.

    `routers` are the origins of the data ports, by name. All reading methods may be called from other threads.
    """

    def __init__(self, background: Background, routers: Mapping[str, str], seed: int) -> None:
        self.attempts: list[Attempt] = []
        self.unanswered: list[list[Attempt]] = []
        self._background = background
        self._urls = dict(routers)
        self._order = list(routers)
        self._turn = seed
        self._aside: set[str] = set()
        self._seed = seed
        self._open = False
        self._tasks: list[asyncio.Task[None]] = []
        self._http: aiohttp.ClientSession

    def start(self) -> None:
        self._background.call(self._start())

    def finish(self) -> None:
        """No new requests; returns when those under way are done. May be called twice."""
        self._background.call(self._finish(), PATIENCE_S * TRIES)

    def welcome(self, router: str) -> None:
        """It is ready again."""
        self._background.call(self._welcome(router))

    def is_aside(self, router: str) -> bool:
        """Whether a client has met its end."""
        return router in self._aside

    def answered(self, since: float = 0.0) -> Counter[str]:
        """Requests that began after `since` and were answered whole, by router."""
        return Counter(
            attempt.router for attempt in list(self.attempts) if attempt.fate is Fate.ANSWERED and attempt.began > since
        )

    def replicas(self, since: float = 0.0) -> Counter[str]:
        """The same, by replica."""
        return Counter(
            attempt.replica
            for attempt in list(self.attempts)
            if attempt.fate is Fate.ANSWERED and attempt.began > since
        )

    def go_on(self, routers: Iterable[str], seconds: float, least: int, check: Callable[[], None]) -> None:
        """Until so much time has passed, and each of `routers` has answered `least` requests that began meanwhile."""
        began = time.monotonic()
        deadline = began + seconds + PATIENCE_S
        wanted = set(routers)
        while time.monotonic() < began + seconds or any(self.answered(began)[name] < least for name in wanted):
            check()
            assert time.monotonic() < deadline, f"requests do not flow: {self.answered(began)}"
            time.sleep(0.02)

    def failures(self, outages: Sequence[Outage]) -> list[object]:
        """Every attempt that failed without an excuse, and every request that was never answered."""
        broken = [
            attempt
            for attempt in self.attempts
            if attempt.fate is not Fate.ANSWERED and not any(outage.excuses(attempt) for outage in outages)
        ]
        return [*broken, *self.unanswered]

    async def _start(self) -> None:
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S, sock_connect=5)
        self._http = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        self._open = True
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._client(random.Random(self._seed + each))) for each in range(CLIENTS)]

    async def _finish(self) -> None:
        if self._open:
            self._open = False
            try:
                await asyncio.gather(*self._tasks)
            finally:
                await self._http.close()

    async def _welcome(self, router: str) -> None:
        self._aside.discard(router)

    async def _client(self, rng: random.Random) -> None:
        while self._open:
            await self._ask(rng)
            await asyncio.sleep(rng.uniform(0, 2 * THINK_S))

    async def _ask(self, rng: random.Random) -> None:
        """One request, repeated elsewhere when a process died under it."""
        question = _question(rng)
        attempts: list[Attempt] = []
        while len(attempts) < TRIES and (router := self._next()):
            attempt = await self._attempt(router, question)
            attempts.append(attempt)
            self.attempts.append(attempt)
            if attempt.fate is Fate.ANSWERED:
                return
            if attempt.fate is Fate.CUT_OFF:
                self._aside.add(router)
        self.unanswered.append(attempts)

    def _next(self) -> str | None:
        for _ in self._order:
            self._turn += 1
            router = self._order[self._turn % len(self._order)]
            if router not in self._aside:
                return router
        return None

    async def _attempt(self, router: str, question: dict[str, Any]) -> Attempt:
        began = time.monotonic()
        replica = ""
        status, body = 0, bytearray()
        try:
            async with self._http.post(self._urls[router] + "/v1/chat/completions", json=question) as response:
                status = response.status
                replica = response.headers.get("x-radixgate-replica", "")
                async for piece in response.content.iter_any():
                    body += piece
            fate, detail = judge(question["stream"], status, bytes(body))
        except TimeoutError:
            fate, detail = Fate.WRONG, f"no end within {PATIENCE_S:g} s"
        except (aiohttp.ClientError, OSError) as error:
            fate, detail = Fate.CUT_OFF, f"{error!r} after status {status} and {len(body)} bytes"
        return Attempt(router, replica, question["stream"], began, time.monotonic(), fate, detail)


def _question(rng: random.Random) -> dict[str, Any]:
    """About one of a few documents, so that prefixes are shared; half of them as a stream."""
    document = rng.randrange(DOCUMENTS)
    text = " ".join(f"{document}.{number} is a sentence that says something new." for number in range(24))
    question: dict[str, Any] = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": text},
            {"role": "user", "content": f"What does sentence {rng.randrange(10_000)} say?"},
        ],
        "max_tokens": rng.randint(8, 32),
        "stream": rng.random() < 0.5,
    }
    return question | ({"stream_options": {"include_usage": True}} if question["stream"] else {})
