"""How a request's tokens are chosen.

Owns the parameters and their meaning; torch-free. Who applies them is `sampling.py`; who reads them from a client's
request is `intake.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """In OpenAI's and vLLM's words. Order: penalties, temperature, then top_k, top_p and min_p on what remains.

    `temperature` 0 is greedy. `top_k` 0: no limit. `seed` decides every draw, together with the position; a request
    without one from its client gets a random one. `logprobs`: None for none, else how many of the likeliest tokens are
    wanted beside the chosen one; they are those of the model, before any of the above.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0


class TokenLogprobs(NamedTuple):
    """Natural logarithms: that of the chosen token, and (token id, logprob) of the likeliest, best first."""

    chosen: float
    top: tuple[tuple[int, float], ...]
