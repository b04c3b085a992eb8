"""The engine: one task that schedules, runs and books steps while there is work, and sleeps when there is none.

Owns that task and the way of tokens from a step to whoever waits for them. Must never wait for a client, a router or
the network, and never leave a request without an end: what cannot be answered ends in an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from radix.events import Snapshot
from replica.journal import Journal
from replica.metrics import Metrics
from replica.request import Finish, Request
from replica.runner import Runner
from replica.scheduler import Scheduler, Step

log = logging.getLogger(__name__)


class EngineStopped(RuntimeError):
    """The engine takes no requests any more."""


class GenerationFailed(RuntimeError):
    """The engine could not finish the answer; the message says why."""


@dataclass(frozen=True, slots=True)
class Output:
    """What an answer grew by since one last looked. `text` may be empty although there are tokens, and the reverse."""

    tokens: tuple[int, ...]
    text: str
    finish: Finish | None


class Generation:
    """The answers to one or more requests that were submitted together, as an asynchronous iterator.

    Each item lists (index of the request, Output) for those that grew; a slow reader finds several tokens in one item.
    Ends when all have ended. Raises GenerationFailed when one of them cannot be finished.
    """

    def __init__(self, requests: tuple[Request, ...]) -> None:
        self.requests = requests
        self._fetched = [request.prompt_tokens for request in requests]
        self._ended: set[int] = set()
        self._news = asyncio.Event()
        self._failure: str | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the cache, of all requests that have started."""
        return sum(request.cached or 0 for request in self.requests)

    def notify(self, failure: str | None = None) -> None:
        """Called by the engine when one of the requests took a token or ended."""
        self._failure = self._failure or failure
        self._news.set()

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[tuple[int, Output]]:
        while True:
            if self._failure is not None:
                raise GenerationFailed(self._failure)
            if grown := self._grown():
                return grown
            if len(self._ended) == len(self.requests):
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

    def _grown(self) -> list[tuple[int, Output]]:
        grown = []
        for index, request in enumerate(self.requests):
            if index in self._ended or not (len(request.tokens) > self._fetched[index] or request.finish):
                continue
            tokens = tuple(request.tokens[self._fetched[index] :])
            self._fetched[index] = len(request.tokens)
            if request.finish:
                self._ended.add(index)
            grown.append((index, Output(tokens, request.text.take() if request.text else "", request.finish)))
        return grown


class Engine:
    """`start`, then `submit` and `cancel` at will, `stop` at the end; all from one event loop."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        journal: Journal,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler = scheduler
        self.journal = journal
        self._runner = runner
        self._metrics = metrics
        self._clock = clock
        self._generations: dict[Request, Generation] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._stopped: str | None = "the engine has not been started"
        self.failure: str | None = None

    @property
    def healthy(self) -> bool:
        """Whether it takes requests and its last step, if any, went well."""
        return self._stopped is None and self.failure is None

    def start(self) -> None:
        self._stopped = None
        self._task = asyncio.create_task(self._work(), name="engine")

    def submit(self, requests: Iterable[Request]) -> Generation:
        """Queues the requests, all or none. Raises NeverFits when one is too large, EngineStopped after the end."""
        if self._stopped is not None:
            raise EngineStopped(self._stopped)
        generation = Generation(tuple(requests))
        now = self._clock()
        for request in generation.requests:
            self.scheduler.check(request)
        for request in generation.requests:
            request.arrived_at = now
            self.scheduler.add(request)
            self._generations[request] = generation
        self._idle.clear()
        self._wake.set()
        return generation

    def cancel(self, generation: Generation) -> None:
        """Ends what has not ended yet, at the next step. What was computed stays in the cache."""
        for request in generation.requests:
            if self._generations.pop(request, None) is not None:
                self.scheduler.cancel(request)
                self._finished(request)
        generation.notify()
        self._wake.set()

    def publish(self) -> None:
        """Puts on record what has happened to the blocks so far, also within a step that has not ended."""
        self.journal.append(self.scheduler.pool.drain())

    def snapshot(self) -> Snapshot:
        """Everything resident now, fitting exactly between two batches of the journal."""
        self.publish()
        return self.journal.snapshot(self.scheduler.pool.snapshot())

    async def idle(self) -> None:
        """Returns when there is nothing left to do."""
        await self._idle.wait()

    async def stop(self) -> None:
        """Ends the task and every request that has not finished. May be called twice."""
        self._stopped = self._stopped or "the replica is shutting down"
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._abandon(self._stopped)

    async def _work(self) -> None:
        try:
            while True:
                self._wake.clear()
                step = self.scheduler.schedule()
                if step.slices:
                    await self._run(step)
                else:
                    self.publish()
                    self._idle.set()
                    await self._wake.wait()
        except Exception as error:
            # A fault of our own: nothing can be trusted any more, but nobody must be left waiting.
            log.exception("the engine stops")
            self.failure = self._stopped = f"the engine failed: {type(error).__name__}: {error}"
            self._abandon(self._stopped)
            self._idle.set()

    async def _run(self, step: Step) -> None:
        now = self._clock()
        for part in step.slices:
            if part.request.admitted_at is None:
                part.request.admitted_at = now
        try:
            sampled = await self._runner.run(step)
            advanced = self.scheduler.postprocess(step, sampled)
        except Exception as error:
            log.exception("a step failed")
            self._fail_step(f"the model runner failed: {type(error).__name__}: {error}")
            return
        self.failure = None
        self._deliver(step, advanced)
        self.publish()

    def _deliver(self, step: Step, advanced: list[Request]) -> None:
        now = self._clock()
        self._metrics.stepped(step, advanced, now)
        for request in advanced:
            if request.finish is None:
                generation = self._generations[request]
            else:
                generation = self._generations.pop(request)
                self._finished(request)
            generation.notify()

    def _fail_step(self, failure: str) -> None:
        """The step's requests end in error, and no KV that it may have touched is used again."""
        self.failure = failure
        for request in self.scheduler.fail_running():
            self._generations.pop(request).notify(failure)
            self._finished(request)
        self.scheduler.pool.clear()
        self.publish()

    def _abandon(self, failure: str) -> None:
        for request, generation in self._generations.items():
            self.scheduler.cancel(request)
            generation.notify(failure)
            self._finished(request)
        self._generations.clear()

    def _finished(self, request: Request) -> None:
        request.finished_at = self._clock()
        self._metrics.finished(request)
