"""The engine: one task that schedules, runs and books steps while there is work, and sleeps when there is none.

Owns that task and the way of tokens from a step to the generations that wait for them. With a runner that looks ahead,
the next step is scheduled and handed over while one is under way, so that the device never waits for the scheduler.
Must never wait for a client, a router or the network, and never leave a request without an end: what cannot be answered
ends in an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

from radix.events import Snapshot
from replica.blocks import Namespace
from replica.generation import Generation
from replica.journal import Journal
from replica.metrics import Metrics
from replica.request import Limits, Request
from replica.runner import Runner, Sampled
from replica.scheduler import Scheduler, Step

log = logging.getLogger(__name__)

_SLOWEST_RETRY_S = 30.0
_ITS_OWN = Namespace("", cache_salt="the engine's own")


class EngineStopped(RuntimeError):
    """The engine takes no requests any more."""


class Engine:
    """`start`, then `submit` and `cancel` at will, `stop` at the end; all from one event loop.

    `on_publish` is called whenever the events of the pool go on record; it must neither wait nor raise. `retry_s`: how
    long after a failed step the engine tries another of its own accord, if nobody asks for one.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        journal: Journal,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        on_publish: Callable[[], None] | None = None,
        retry_s: float = 1.0,
    ) -> None:
        self.scheduler = scheduler
        self.journal = journal
        self._runner = runner
        self._metrics = metrics
        self._clock = clock
        self._on_publish = on_publish
        self._first_retry_s = self._retry_s = retry_s
        self._generations: dict[Request, Generation] = {}
        self._under_way: deque[tuple[Step, asyncio.Future[Sampled]]] = deque()
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
        if self._on_publish is not None:
            self._on_publish()

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
        await self._forget_steps()
        self._abandon(self._stopped)

    async def _work(self) -> None:
        try:
            while True:
                self._wake.clear()
                if self._begin_step() and len(self._under_way) <= self._runner.lookahead:
                    continue
                if self._under_way:
                    await self._end_step()
                else:
                    self.publish()
                    self._idle.set()
                    await self._rest()
        except Exception as error:
            # A fault of our own: nothing can be trusted any more, but nobody must be left waiting.
            log.exception("the engine stops")
            self.failure = self._stopped = f"the engine failed: {type(error).__name__}: {error}"
            self._abandon(self._stopped)
            self._idle.set()
            await self._forget_steps()

    async def _rest(self) -> None:
        """Until there is work. After a failed step none may come, for routers look at `healthy`: then the engine asks
        itself for a token, ever more rarely, and is well again when it gets one.
        """
        if self.failure is None:
            await self._wake.wait()
            return
        try:
            async with asyncio.timeout(self._retry_s):
                await self._wake.wait()
        except TimeoutError:
            self._retry_s = min(2 * self._retry_s, _SLOWEST_RETRY_S)
            self.submit([Request([0], Limits(1), _ITS_OWN)])

    def _begin_step(self) -> bool:
        """Hands the next step to the runner; False when there is none to be begun now."""
        step = self.scheduler.schedule()
        if not step.slices:
            return False
        now = self._clock()
        for part in step.slices:
            if part.request.admitted_at is None:
                part.request.admitted_at = now
        self._under_way.append((step, self._run(step)))
        return True

    def _run(self, step: Step) -> asyncio.Future[Sampled]:
        try:
            return asyncio.ensure_future(self._runner.run(step))
        except Exception as error:
            # Its turn comes after the steps before it.
            failed: asyncio.Future[Sampled] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed

    async def _end_step(self) -> None:
        """Waits for the oldest step under way, and passes on what it brought."""
        step, result = self._under_way[0]
        try:
            sampled = await _outcome(result)
            self._under_way.popleft()
            advanced = self.scheduler.postprocess(step, sampled.tokens, sampled.logprobs)
        except Exception as error:
            log.exception("a step failed")
            await self._fail_steps(f"the model runner failed: {type(error).__name__}: {error}")
            return
        self.failure, self._retry_s = None, self._first_retry_s
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

    async def _fail_steps(self, failure: str) -> None:
        """What runs ends in error, and no KV that the steps under way may have touched is used again."""
        await asyncio.gather(*(result for _, result in self._under_way), return_exceptions=True)
        self._under_way.clear()
        self.failure = failure
        for request in self.scheduler.fail_running():
            self._generations.pop(request).notify(failure)
            self._finished(request)
        self.scheduler.pool.clear()
        self.publish()

    async def _forget_steps(self) -> None:
        """Nobody waits for the steps under way any more."""
        for _, result in self._under_way:
            result.cancel()
        await asyncio.gather(*(result for _, result in self._under_way), return_exceptions=True)
        self._under_way.clear()

    def _abandon(self, failure: str) -> None:
        for request, generation in self._generations.items():
            self.scheduler.cancel(request)
            generation.notify(failure)
            self._finished(request)
        self._generations.clear()

    def _finished(self, request: Request) -> None:
        request.finished_at = self._clock()
        self._metrics.finished(request)


async def _outcome(result: asyncio.Future[Sampled]) -> Sampled:
    """What a step brought. A runner that cancels a step has failed; that must not be taken for the engine's own end."""
    try:
        return await result
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if not result.cancelled() or (task is not None and task.cancelling()):
            raise
        raise RuntimeError("it gave the step up") from None
