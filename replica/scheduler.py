"""Which tokens are computed next: continuous batching with chunked prefill under one token budget a step.

Owns the queues and every block table. `schedule` -> run the step somewhere -> `postprocess`, and `add` and `cancel` at
any time, which take effect at the next `schedule`.

The next step may be scheduled while one is under way, if the runner executes them in order: then a request may decode
on from a token that is not known yet. `postprocess` is called in the same order. What a step computed for a request
that has ended or been preempted meanwhile is dropped; its blocks go back at once, for whoever gets them is written by a
later step. A sampled token counts also for a request that was preempted, which does not start over before it knows it.

- Requests start in order of arrival, and a later one never starts while an earlier one waits: nobody starves.
- Running requests go first, oldest first. A prompt longer than what is left of the budget continues in the next step;
  it is then the youngest running request, so that decodes come before prefill.
- When blocks run out, the youngest running request is preempted: its blocks go back (still resident, so that it may
  find them again) and it starts over, at the head of the queue. The oldest always advances: there is no livelock.

Must never start what can never fit, exceed the budget, or run a request without room for the tokens of its step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

from replica.blocks import BlockPool, BlockTable
from replica.request import Finish, Request, State
from replica.sampling_params import TokenLogprobs


class NeverFits(ValueError):
    """The request could not be served even by an idle replica."""


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """A step computes at most `max_batched_tokens` tokens, of at most `max_running` requests."""

    max_batched_tokens: int = 2048
    max_running: int = 128

    def __post_init__(self) -> None:
        if self.max_running < 1:
            raise ValueError("max_running must be at least 1")
        if self.max_batched_tokens < self.max_running:
            raise ValueError("max_batched_tokens must be at least max_running, for each decoding request takes one")


@dataclass(frozen=True, slots=True)
class Slice:
    """`count` tokens of a request, after its first `start`. It `samples` when it reaches the last one.

    The last token may be one that is not known yet, which the step before this one samples: then there is no
    `request.tokens[start + count - 1]` when the step is run.
    """

    request: Request
    start: int
    count: int
    samples: bool

    @property
    def is_decode(self) -> bool:
        return self.count == 1 and self.samples


@dataclass(frozen=True, slots=True)
class Step:
    """What one run of the model computes, in one batch."""

    slices: tuple[Slice, ...]

    @property
    def tokens(self) -> int:
        return sum(part.count for part in self.slices)

    @property
    def samples(self) -> int:
        return sum(part.samples for part in self.slices)


class Scheduler:
    def __init__(self, pool: BlockPool, limits: SchedulerLimits | None = None) -> None:
        self.pool = pool
        self.limits = limits or SchedulerLimits()
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # oldest first, and all older than those that wait
        self.preemptions = 0
        self._cancelled: list[Request] = []

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running)

    def check(self, request: Request) -> None:
        """Raises NeverFits when the pool is too small for the request's prompt and output."""
        # The KV of the last output token is never needed.
        needed = self.pool.blocks_for(request.prompt_tokens + request.limits.max_tokens - 1)
        if needed > self.pool.total:
            raise NeverFits(
                f"{request.prompt_tokens} prompt tokens and up to {request.limits.max_tokens} output tokens need "
                f"{needed} KV blocks of {self.pool.block_size} tokens, but this replica has {self.pool.total}. "
                "Shorten the prompt or lower max_tokens."
            )

    def add(self, request: Request) -> None:
        """Queues a request. Raises NeverFits, as `check` does."""
        self.check(request)
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """Ends a request at the next `schedule`. Whatever it has computed stays resident."""
        if request.state is not State.FINISHED and request.finish is None:
            request.end(Finish.ABORT)
            self._cancelled.append(request)

    def schedule(self) -> Step:
        """The next step; one without slices when there is nothing to do."""
        self._drop_cancelled()
        budget = self.limits.max_batched_tokens
        slices: list[Slice] = []
        preemptions = self.preemptions
        for request in tuple(self.running):
            if request.state is State.RUNNING:
                count = min(request.remaining, budget)
                if count and self._make_room(request, request.scheduled + count):
                    slices.append(_slice(request, count))
                    budget -= count
        # Whoever was just preempted must not take its room back at once.
        while (
            self.waiting and budget and len(self.running) < self.limits.max_running and self.preemptions == preemptions
        ):
            request = self.waiting[0]
            if request.pending or not self._admit(request):
                break
            count = min(request.remaining, budget)
            slices.append(_slice(request, count))
            budget -= count
        return Step(tuple(slices))

    def postprocess(
        self, step: Step, sampled: Sequence[int], logprobs: Sequence[TokenLogprobs | None] = ()
    ) -> list[Request]:
        """Books what the step computed; `sampled` has one token for each slice that samples, in order, and `logprobs`
        as many, or none at all.

        Returns the requests that took a token; those that ended have their `finish`.
        """
        if len(sampled) != step.samples or len(logprobs) not in (0, step.samples):
            raise ValueError(
                f"the runner returned {len(sampled)} tokens and {len(logprobs)} logprobs for a step that samples "
                f"{step.samples}"
            )
        tokens = zip(sampled, logprobs or repeat(None), strict=False)
        advanced = []
        for part in step.slices:
            request = part.request
            if request.state is State.RUNNING:
                request.computed = part.start + part.count
                self.pool.store(request.table, request.packed, request.computed)
            if not part.samples:
                continue
            request.pending -= 1
            token, likely = next(tokens)
            if request.finish is None:
                request.take(token, likely)
                advanced.append(request)
                if request.finish is not None:
                    self._retire(request)
        return advanced

    def fail_running(self) -> list[Request]:
        """Ends every running request in error, for the steps under way are lost. Returns them."""
        self._drop_cancelled()
        for request in self.waiting:
            request.pending = 0  # it will be sampled anew
        failed = list(self.running)
        for request in failed:
            request.end(Finish.ERROR)
            self._retire(request)
        return failed

    def _make_room(self, request: Request, tokens: int) -> bool:
        """Preempts the youngest until the table can hold `tokens` tokens; False when that is the request itself."""
        while not self.pool.grow(request.table, tokens):
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._give_back(request)
        request.computed = request.scheduled = 0
        request.state = State.WAITING
        request.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(request)

    def _admit(self, request: Request) -> bool:
        """Starts a request if its known tokens fit and leave a block for each running one, which will soon need it."""
        table = self.pool.open(request.namespace, request.packed)
        if not self.pool.grow(table, len(request.tokens), spare=len(self.running)):
            self.pool.release(table)
            return False
        self.waiting.popleft()
        self.running.append(request)
        request.table = table
        request.computed = request.scheduled = table.stored * self.pool.block_size
        request.state = State.RUNNING
        if request.cached is None:
            request.cached = request.computed
        return True

    def _retire(self, request: Request) -> None:
        if request.state is State.RUNNING:
            self.running.remove(request)
            self._give_back(request)
        else:
            self.waiting.remove(request)
        request.state = State.FINISHED

    def _drop_cancelled(self) -> None:
        for request in self._cancelled:
            if request.state is not State.FINISHED:
                self._retire(request)
        self._cancelled.clear()

    def _give_back(self, request: Request) -> None:
        self.pool.release(request.table)
        request.table = BlockTable(request.namespace)


def _slice(request: Request, count: int) -> Slice:
    part = Slice(request, request.scheduled, count, samples=count == request.remaining)
    request.scheduled += count
    request.pending += part.samples
    return part
