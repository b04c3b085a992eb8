"""Predicted times: what sending a request to a replica costs, in seconds.

Owns the formula of the `kv` policy and its weights.

    prefill(q, r) = uncached(q, r) · seconds_per_token(r) · (1 + slowdown(r) · decoding(r))
    ttft(q, r)    = wait(r) + prefill(q, r)                             (wait: backlog.py; rates: calibration.py)
    harm(q, r)    = (miss + queue · least waiting + own_queue · waiting(r)) · uncached(q, r) · seconds_per_token
                  + decoding(r) · (interference · prefill(q, r) + stream_share · answer(q)) + pressure(q, r)
    cost          = ttft + harm

What a miss does to others, beyond its own time: its blocks push somebody else's out of the cache (`miss`), and whoever
comes while there is a queue waits the longer for it. By Little's law, as many come as wait now: everywhere at least as
many as at the replica where fewest wait (`queue`), and more at this one (`own_queue`; so long prefills keep out of the
way of many short ones). The busier the fleet, the more a cached token is worth; but while a replica is idle, a queue
elsewhere is no reason to join it. Both are reckoned at the fleet's mean speed: a slow replica has as few others to harm
as its share of the work is small.

What most candidates hold of the prompt counts as cached on all (up to `common_s` of prefill): a replica that lacks it
pays once. Otherwise one that joins an unhurried fleet would stay cold for ever, and a hot prefix with those that
happened to get it first.

Every decoding stream waits while q's prefill takes its share of the steps, and each of its tokens takes a little
longer for one more stream in the batch, for as long as that lasts (answers.py predicts it). A replica whose KV cache
would not hold its open requests preempts: `pressure` is the time to compute the overflow again.

Not in it: the constant part of a replica's TTFT (`overhead_s`), which is learned lest it pass for slowness. Within a
cluster it differs by less than its estimates scatter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scoring.backlog import HEAD_TO_MEAN
from scoring.decision import Query
from scoring.ledger import ReplicaLoad

# So little that it decides only between replicas that are otherwise equal: fewer open requests win.
OPEN_REQUEST_S = 1e-6


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the parts of the cost. `most_waiting` bounds the least queue: beyond it, everybody waits anyway."""

    miss: float = 1.0
    queue: float = 2.0
    own_queue: float = 0.1
    most_waiting: int = 16
    common_s: float = 1.0
    interference: float = 0.2
    stream_share: float = 0.007  # of a step of some 15 ms, a stream's part is about 0.1 ms


def costs_s(query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int], weights: Weights) -> list[float]:
    """For each replica, the predicted seconds that the fleet pays for the request there: its own wait, and the harm to
    the others. `overlaps` (tokens) runs parallel to `loads`.
    """
    # On the hot path of every request: few look-ups, no calls in the loop, and backlog.wait_s written out.
    prompt_tokens, now, count = query.prompt_tokens, query.now, len(loads)
    queues = [load.waiting for load in loads]
    paces = [load.learned.seconds_per_token for load in loads]
    mean_pace = paces[0] if paces.count(paces[0]) == count else count / sum([1.0 / pace for pace in paces])
    miss_s = mean_pace * (weights.miss + weights.queue * min(*queues, weights.most_waiting))
    own_queue_s, interference = mean_pace * weights.own_queue, weights.interference
    common = sorted(overlaps)[(count - 1) // 2]
    most_common = int(weights.common_s / mean_pace)
    stream_s = weights.stream_share * query.answer_s
    costs = []
    for load, overlap, waiting, pace in zip(loads, overlaps, queues, paces, strict=True):
        if overlap < common:
            overlap = min(common, overlap + most_common)
        uncached = prompt_tokens - overlap
        decoding = load.decoding
        seconds = uncached * miss_s + (waiting + decoding) * OPEN_REQUEST_S
        overflow = load.context_tokens + prompt_tokens - load.capacity_tokens
        if overflow > 0 and load.capacity_tokens:
            seconds += overflow * pace
        if decoding:
            pace *= 1.0 + load.learned.slowdown * decoding
            seconds += decoding * (uncached * pace * interference + stream_s)
        if waiting:
            expected, elapsed = load.queued_tokens * pace, now - load.moved_at
            if expected <= 0.0 or elapsed < 0.0:
                elapsed = 0.0
            head = HEAD_TO_MEAN * expected / waiting if waiting > HEAD_TO_MEAN else expected
            left, late = expected - (elapsed if elapsed < head else head), elapsed - expected
            seconds += (left if left > late else late) + own_queue_s * waiting * uncached
        costs.append(seconds + uncached * pace)
    return costs
