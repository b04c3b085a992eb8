"""What of a replica's load stays as it is until something is booked, begins or ends there: made once, read often.

Owns the terms of the cost (cost.py) that depend neither on the request nor on the time. Every decision reads those of
all candidates, and few of them have changed since the one before. All are floats, also the counts: CPython computes
with two floats at once, but looks up how to compute with an int and a float.

Must never do I/O or read a clock.
"""

from __future__ import annotations

import math

from scoring.backlog import HEAD_TO_MEAN
from scoring.learned import Learned

# So little that it decides only between replicas that are otherwise equal: fewer open requests win.
OPEN_REQUEST_S = 1e-6

# Requests waiting; seconds a token, alone and beside what decodes; OPEN_REQUEST_S of all that are open; tokens that the
# KV cache has left, infinite where its size is unknown; requests decoding; seconds that the queue was expected to take,
# and the most of them that count as done (backlog.py); when the queue last moved, infinite where nothing is queued. A
# plain tuple, which is taken apart in one step; a named one is not.
Standing = tuple[float, float, float, float, float, float, float, float, float]


def standing_of(
    learned: Learned, waiting: int, decoding: int, queued_tokens: int, room_tokens: float, moved_at: float
) -> Standing:
    """`room_tokens`: what the KV cache has left, below 0 when it is overbooked."""
    pace = learned.seconds_per_token
    slowed = pace * (1.0 + learned.slowdown * decoding)
    expected = queued_tokens * slowed
    return (
        float(waiting),
        pace,
        slowed,
        (waiting + decoding) * OPEN_REQUEST_S,
        float(room_tokens),
        float(decoding),
        expected,
        HEAD_TO_MEAN * expected / waiting if waiting > HEAD_TO_MEAN else expected,
        moved_at if expected > 0.0 else math.inf,
    )
