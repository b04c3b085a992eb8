"""What executes a step: the one interface between the engine and its runners.

Owns the interface only. `simulated.py` is one runner; `model_runner.py` computes a real model.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol

from replica.sampling_params import TokenLogprobs
from replica.scheduler import Step


@dataclass(frozen=True, slots=True)
class Sampled:
    """The next token of each slice that samples, in order; and its log probabilities, or nothing at all where no
    request of the step wants any.
    """

    tokens: Sequence[int]
    logprobs: Sequence[TokenLogprobs | None] = ()


class Runner(Protocol):
    """Executes steps, in the order in which `run` was called."""

    @property
    def lookahead(self) -> int:
        """How many steps may be given to `run` while one is still under way: 0 or 1.

        With 1, a step may hold a slice whose last token is not known yet: the one that the step before it samples for
        that request. The runner takes it from its own memory.
        """
        ...

    def run(self, step: Step) -> Awaitable[Sampled]:
        """Computes the KV of the step's tokens and samples. Reads the step's requests before it returns, not later.

        The awaitable may raise whatever it likes: the engine then fails the requests that run, forgets all KV, and goes
        on.
        """
        ...
