"""A replica in simulated time: the real scheduler and block pool, and a timing model in place of a GPU.

Owns one replica's step under way, and what it did. Must never give another result than running every step would: what
it leaps over are steps in which each running request decodes one token and nothing else happens.
"""

from __future__ import annotations

from bisect import bisect_left
from math import inf
from typing import Protocol

from loadgen.virtual.clock import STEP, Due, VirtualClock
from loadgen.virtual.prompts import NAMESPACE, OUTPUT_TOKEN, Job, prompt_tokens
from radix.blocks import TOKEN_BYTES
from replica.blocks import BlockPool
from replica.request import Limits, Request
from replica.scheduler import Scheduler, SchedulerLimits, Step
from replica.simulated import TimingModel


class Listener(Protocol):
    """Hears of a replica's doings as they happen."""

    def first_token(self, job: Job, cached_tokens: int) -> None:
        """The request has its first token from this replica, which found so many of its prompt tokens."""

    def finished(self, job: Job) -> None: ...

    def stepped(self) -> None:
        """A step is over: the pool's events are to be published."""


class VirtualReplica(Protocol):
    """`computed_tokens` counts prompt and output tokens, `busy_s` seconds; `slowness` multiplies every duration."""

    name: str
    pool: BlockPool
    listener: Listener
    computed_tokens: int
    busy_s: float

    @property
    def preemptions(self) -> int: ...

    def take(self, job: Job) -> None:
        """Queues a request. Raises NeverFits for one that is too large for the pool."""

    def slow(self, slowness: float) -> None:
        """From the next step on."""

    def stop(self) -> list[Job]:
        """The replica is dead at once. Returns what it had not finished, in order of arrival here."""


class EngineReplica:
    """Continuous batching with chunked prefill, as replica/scheduler.py has it. Without `leaps`, every step is run."""

    def __init__(
        self,
        name: str,
        clock: VirtualClock,
        pool: BlockPool,
        listener: Listener,
        limits: SchedulerLimits,
        timing: TimingModel,
        *,
        leaps: bool = True,
    ) -> None:
        self.name = name
        self.pool = pool
        self.listener = listener
        self.computed_tokens = 0
        self.busy_s = 0.0
        self._clock = clock
        self._scheduler = Scheduler(pool, limits)
        self._timing = timing
        self._slowness = 1.0
        self._leaps = leaps
        self._jobs: dict[Request, Job] = {}
        self._due: Due | None = None
        self._step: Step | None = None
        self._started = 0.0
        self._ends: list[float] = []  # of the steps that are leapt over

    @property
    def preemptions(self) -> int:
        return self._scheduler.preemptions

    def take(self, job: Job) -> None:
        ask = job.ask
        prompt = prompt_tokens(ask.blocks, ask.prompt_tokens, ask.unit_tokens)
        prompt.extend([OUTPUT_TOKEN] * job.produced)
        request = Request(prompt, Limits(ask.output_tokens - job.produced, ignore_eos=True), NAMESPACE)
        self._scheduler.add(request)
        self._jobs[request] = job
        if self._due is None:
            self._due = self._clock.at(self._clock.now, self._begin, STEP)
        else:
            self._cut_short()

    def slow(self, slowness: float) -> None:
        self._slowness = slowness
        self._cut_short()

    def stop(self) -> list[Job]:
        if self._due is not None:
            self._due.cancel()
        if self._ends:
            self._decode(bisect_left(self._ends, self._clock.now))
        for request, job in self._jobs.items():
            job.produced += request.output_tokens
        return list(self._jobs.values())

    def _begin(self) -> None:
        """Starts the next step, if there is anything to do."""
        self._due = None
        self._started = now = self._clock.now
        steps = self._undisturbed() if self._leaps else 0
        if steps:
            self._ends = self._decode_ends(steps)
            self._due = self._clock.at(self._ends[-1], self._land, STEP)
            return
        self._step = step = self._scheduler.schedule()
        if step.slices:
            self._due = self._clock.at(now + self._timing.duration(step) * self._slowness, self._end, STEP)
        elif not self._scheduler.idle:
            raise RuntimeError(f"{self.name} has requests, but no step to run")

    def _end(self) -> None:
        step = self._step
        assert step is not None
        self.busy_s += self._clock.now - self._started
        self.computed_tokens += step.tokens
        for request in self._scheduler.postprocess(step, [OUTPUT_TOKEN] * step.samples):
            job = self._jobs[request]
            if request.output_tokens == 1:
                self.listener.first_token(job, request.cached or 0)
            if request.finish is not None:
                del self._jobs[request]
                self.listener.finished(job)
        self.listener.stepped()
        self._begin()

    # Leaps.

    def _undisturbed(self) -> int:
        """How many steps are sure to be nothing but one more token for each running request: none of them ends, fills
        a block or needs a new one, and none that waits is looked at.
        """
        scheduler = self._scheduler
        running = scheduler.running
        if not running or (scheduler.waiting and len(running) < scheduler.limits.max_running):
            return 0
        block = self.pool.block_size
        steps: float = inf
        for request in running:
            if request.remaining != 1 or not request.output_tokens:
                return 0
            table = request.table
            room = len(table.blocks) * block - request.scheduled
            if table.sharing:
                room = min(room, (table.stored + 1) * block - 1 - request.computed)
            steps = min(steps, room, request.limits.max_tokens - request.output_tokens - 1)
        return int(steps)

    def _decode_ends(self, steps: int) -> list[float]:
        """When each of so many decode steps ends: TimingModel.duration, added up in the same order."""
        timing, slowness = self._timing, self._slowness
        running = self._scheduler.running
        count = len(running)
        context = sum(request.scheduled + 1 for request in running)
        decodes_s = count * timing.decode_s
        end = self._started
        ends = []
        for _ in range(steps):
            end += (timing.step_s + (decodes_s + context * timing.context_token_s)) * slowness
            context += count
            ends.append(end)
        return ends

    def _cut_short(self) -> None:
        """Something happens: of the steps that are leapt over, only those that have begun remain."""
        begun = 1 + bisect_left(self._ends, self._clock.now)
        if begun < len(self._ends):
            del self._ends[begun:]
            assert self._due is not None
            self._due.cancel()
            self._due = self._clock.at(self._ends[-1], self._land, STEP)

    def _land(self) -> None:
        self._decode(len(self._ends))
        self._begin()

    def _decode(self, steps: int) -> None:
        """Books the first `steps` of the steps that are leapt over."""
        if steps:
            self.busy_s += self._ends[steps - 1] - self._started
        for request in self._scheduler.running:
            request.tokens += [OUTPUT_TOKEN] * steps
            request.packed += bytes(TOKEN_BYTES * steps)
            request.scheduled += steps
            request.computed += steps
            self.computed_tokens += steps
        self._ends = []
