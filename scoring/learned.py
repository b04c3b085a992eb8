"""What one replica can do, as far as it is known.

Owns the record and its formula; calibration.py learns it. Source of the form: prefill is a fixed number of operations a
token, and a step that prefills also decodes, so that each decoding stream takes its share of it.

    ttft = overhead + work · seconds_per_token · (1 + slowdown · decoding)
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Learned:
    """One replica's rates. `slowdown` is a share per decoding stream; `receipts` is how many were ever seen of it."""

    seconds_per_token: float = 1.0 / 8000.0
    slowdown: float = 0.0
    overhead_s: float = 0.0
    receipts: int = 0

    def ttft_s(self, work_tokens: int, decoding: int = 0) -> float:
        """Expected seconds until the first byte."""
        return self.overhead_s + self.work_s(work_tokens, decoding)

    def work_s(self, work_tokens: int, decoding: int = 0) -> float:
        """Expected seconds of prefill alone."""
        return work_tokens * self.seconds_per_token * (1.0 + self.slowdown * decoding)


PRIOR = Learned()
