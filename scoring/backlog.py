"""How long a replica's prefill queue will still take, seen from outside.

Owns the estimate of the queue's progress. The ledger counts a prompt in full until its first byte; but a replica that
has been computing for a while is further than that. Without it, a long prompt nearly done weighs like one just begun.

    expected = queued tokens · seconds per token
    elapsed  = time since the queue last moved: since it was empty, or since tokens left it
    progress = min(elapsed, 2 · expected / requests waiting)
    seconds  = expected - progress;  at least elapsed - expected, once it is overdue

The head of the queue is taken to be no longer than twice the mean, so that a replica which hangs does not look emptier
and emptier. A queue that has not moved for longer than all of it should have taken is slow: it is expected to take as
long again as it is late.

Must never do I/O or read a clock: the time is handed in (seconds, never running backwards).
"""

from __future__ import annotations

import msgspec

HEAD_TO_MEAN = 2.0


class Backlog(msgspec.Struct):
    """One replica's queue. It is looked at with the ledger's sums, whoever booked what they sum up."""

    queued_tokens: int = 0
    since: float = 0.0

    def seconds(self, queued_tokens: int, waiting: int, seconds_per_token: float, now: float) -> float:
        """Until what is queued now will have been computed. Call it whenever the sums changed, or anew at any time."""
        if queued_tokens < self.queued_tokens or not self.queued_tokens:
            self.since = now
        self.queued_tokens = queued_tokens
        if not queued_tokens:
            return 0.0
        expected = queued_tokens * seconds_per_token
        elapsed = now - self.since
        left = expected - min(elapsed, expected, HEAD_TO_MEAN * expected / max(waiting, 1))
        return max(left, elapsed - expected)
