"""One request inside the engine: its tokens, its blocks, how far it has come and when it must end.

Owns that state and the rules for ending. Must never touch the pool: the scheduler does.

Steps may be under way whose outcome is not known yet. So there are two counts of tokens: those whose KV is there
(`computed`), and those whose computation has been scheduled (`scheduled`), which includes them. A sample under way
stands for a token that is not known yet; it is `pending`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from radix.blocks import TOKEN_BYTES, pack_tokens
from replica.blocks import BlockTable, Namespace
from replica.sampling_params import SamplingParams, TokenLogprobs
from replica.text import TextStream


class State(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Finish(enum.Enum):
    """Why a request ended, in OpenAI's words where there is one."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Limits:
    """When a request ends. `open_ended`: the client named no length, the model may choose one up to `max_tokens`.

    `stop_ids` end an answer always, `eos_ids` unless `ignore_eos`.
    """

    max_tokens: int
    open_ended: bool = False
    ignore_eos: bool = False
    eos_ids: frozenset[int] = frozenset()
    stop_ids: frozenset[int] = frozenset()


_PLAIN = SamplingParams()


class Request:
    """`tokens` are the prompt's, then the output's; the first `computed` of them have their KV in `table`.

    `variant` tells the several answers to one prompt apart. `logprobs` is parallel to the output where `sampling` wants
    any, else empty. Times are the engine's clock, in seconds.
    """

    __slots__ = (
        "admitted_at",
        "arrived_at",
        "cached",
        "computed",
        "digest",
        "finish",
        "finished_at",
        "first_token_at",
        "last_token_at",
        "limits",
        "logprobs",
        "namespace",
        "packed",
        "pending",
        "preemptions",
        "prompt_tokens",
        "sampling",
        "scheduled",
        "state",
        "table",
        "text",
        "tokens",
        "variant",
    )

    def __init__(
        self,
        prompt: Sequence[int],
        limits: Limits,
        namespace: Namespace,
        text: TextStream | None = None,
        variant: int = 0,
        sampling: SamplingParams = _PLAIN,
    ) -> None:
        if not prompt:
            raise ValueError("a request needs at least one prompt token")
        self.prompt_tokens = len(prompt)
        self.tokens = list(prompt)
        self.packed = bytearray(pack_tokens(prompt))
        self.digest = xxh3_64_intdigest(self.packed, variant)
        self.limits = limits
        self.namespace = namespace
        self.text = text
        self.variant = variant
        self.sampling = sampling
        self.logprobs: list[TokenLogprobs] = []
        self.table = BlockTable(namespace)
        self.state = State.WAITING
        self.finish: Finish | None = None
        self.computed = 0
        self.scheduled = 0
        self.pending = 0  # up to one for each step under way
        self.cached: int | None = None  # prompt tokens found in the cache at admission
        self.preemptions = 0
        self.arrived_at = 0.0
        self.admitted_at: float | None = None
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.finished_at: float | None = None

    @property
    def output(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    @property
    def output_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def remaining(self) -> int:
        """Tokens to be scheduled, one that is pending included: one while decoding, more while prefilling; none when
        what is pending will be the last.
        """
        tokens = len(self.tokens) + self.pending
        return 0 if tokens - self.prompt_tokens >= self.limits.max_tokens else tokens - self.scheduled

    def take(self, token: int, logprobs: TokenLogprobs | None = None) -> None:
        """Appends the next token and decides whether it is the last. Raises ValueError without logprobs where the
        request wants them.
        """
        if self.sampling.logprobs is not None:
            if logprobs is None:
                raise ValueError("the runner returned no logprobs for a request that wants them")
            self.logprobs.append(logprobs)
        self.tokens.append(token)
        self.packed += token.to_bytes(TOKEN_BYTES, "little")
        limits = self.limits
        if token in limits.stop_ids or (token in limits.eos_ids and not limits.ignore_eos):
            self.end(Finish.STOP)
        elif self.text is not None and self.text.push(token):
            self.finish = Finish.STOP  # and not `end`: what follows the stop string is never shown
        elif len(self.tokens) - self.prompt_tokens >= limits.max_tokens:
            self.end(Finish.LENGTH)

    def end(self, finish: Finish) -> None:
        """Marks the request as ended, unless it already is."""
        if self.finish is None:
            self.finish = finish
            if self.text is not None:
                self.text.finish()

    def __repr__(self) -> str:
        return f"<Request {self.digest:016x} {self.state.value} {self.computed}/{len(self.tokens)} tokens>"
