"""What executes a step: the one interface between the engine and its runners.

Owns the interface only. `simulated.py` is one runner; a real one computes on an accelerator.
"""

from __future__ import annotations

from typing import Protocol

from replica.scheduler import Step


class Runner(Protocol):
    """Executes steps, one at a time, in the order in which the scheduler makes them."""

    async def run(self, step: Step) -> list[int]:
        """Computes the KV of the step's tokens; returns the next token of each slice that samples, in order.

        May raise whatever it likes: the engine then fails the requests of the step, forgets all KV, and goes on.
        """
        ...
