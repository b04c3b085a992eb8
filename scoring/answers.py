"""How long an answer will take to decode, learned from those before it.

Owns the estimate: of the answers whose requests allowed about as many tokens (within a factor of two), the median time
from the first byte to the last. A router sees no tokens, and a request's limit says little by itself: most answers end
long before it. In seconds, because that is for how long others share the steps with it.

The median is tracked by steps of its logarithm, up when an answer took longer, else down, by less the more it has seen
(Robbins and Monro, 1951); it never quite settles, so that it follows a workload that changes.

Must never do I/O or read a clock.
"""

from __future__ import annotations

import math

# Output tokens of a request that does not bound them.
TYPICAL_TOKENS = 256
# Before the first answer: a token takes about as long on a GPU with a few streams.
PRIOR_TOKEN_S = 0.015
FIRST_STEP = 1.0
LEAST_STEP = 0.04
SHORTEST_S = 1e-4


class AnswerTimes:
    """Predictions of `answer_s`, by the tokens that a request allows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._seen: dict[int, int] = {}

    def predict(self, most_tokens: int) -> float:
        """Seconds of decoding of a request that allows so many tokens."""
        known = self._seconds.get(most_tokens.bit_length())
        return most_tokens * PRIOR_TOKEN_S if known is None else known

    def observe(self, most_tokens: int, decoding_s: float) -> None:
        """An answer came whole; `decoding_s` is from its first byte to its last."""
        bucket = most_tokens.bit_length()
        decoding_s = max(decoding_s, SHORTEST_S)
        seen = self._seen[bucket] = self._seen.get(bucket, 0) + 1
        known = self._seconds.get(bucket)
        if known is None:
            self._seconds[bucket] = decoding_s
        elif decoding_s != known:
            step = max(FIRST_STEP / seen, LEAST_STEP)
            self._seconds[bucket] = known * math.exp(step if decoding_s > known else -step)
