"""How long a replica's prefill queue will still take, seen from outside.

Owns the estimate of the queue's progress. The ledger counts a prompt in full until its first byte; but a replica that
has been computing for a while is further than that. Without it, a long prompt nearly done weighs like one just begun.

    expected = queued tokens · seconds per token
    elapsed  = time since the queue last moved: since it was empty, or since a prompt in it was done
    progress = min(elapsed, 2 · expected / requests waiting)
    wait     = expected - progress;  at least elapsed - expected, once it is overdue

The head of the queue is taken to be no longer than twice the mean, so that a replica which hangs does not look emptier
and emptier. A queue that has not moved for longer than all of it should have taken is slow: it is expected to take as
long again as it is late.

Must never do I/O or read a clock: the time is handed in.
"""

from __future__ import annotations

HEAD_TO_MEAN = 2.0


def wait_s(expected_s: float, waiting: int, elapsed_s: float) -> float:
    """Seconds until what is queued now will have been computed. Never negative; 0 where nothing is expected."""
    if expected_s <= 0.0:
        return 0.0
    elapsed_s = max(elapsed_s, 0.0)
    head = HEAD_TO_MEAN * expected_s / waiting if waiting > HEAD_TO_MEAN else expected_s
    left = expected_s - min(elapsed_s, head)
    return max(left, elapsed_s - expected_s)
