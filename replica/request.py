"""One request inside the engine: its tokens, its blocks, how far it has come and when it must end.

Owns that state and the rules for ending. Must never touch the pool: the scheduler does.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from radix.blocks import pack_tokens
from replica.blocks import BlockTable, Namespace
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


class Request:
    """`tokens` are the prompt's, then the output's; the first `computed` of them have their KV in `table`.

    `variant` tells the several answers to one prompt apart. Times are the engine's clock, in seconds.
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
        "namespace",
        "packed",
        "preemptions",
        "prompt_tokens",
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
        self.table = BlockTable(namespace)
        self.state = State.WAITING
        self.finish: Finish | None = None
        self.computed = 0
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
        """Known tokens whose KV is still to be computed: one while decoding, more while prefilling."""
        return len(self.tokens) - self.computed

    def take(self, token: int) -> None:
        """Appends the next token and decides whether it is the last."""
        self.tokens.append(token)
        self.packed += pack_tokens((token,))
        limits = self.limits
        if token in limits.stop_ids or (token in limits.eos_ids and not limits.ignore_eos):
            self.end(Finish.STOP)
        elif self.text is not None and self.text.push(token):
            self.finish = Finish.STOP  # and not `end`: what follows the stop string is never shown
        elif self.output_tokens >= limits.max_tokens:
            self.end(Finish.LENGTH)

    def end(self, finish: Finish) -> None:
        """Marks the request as ended, unless it already is."""
        if self.finish is None:
            self.finish = finish
            if self.text is not None:
                self.text.finish()

    def __repr__(self) -> str:
        return f"<Request {self.digest:016x} {self.state.value} {self.computed}/{len(self.tokens)} tokens>"
