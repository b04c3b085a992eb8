"""Predicted times: what sending a request to a replica costs, in seconds.

Owns the formula of the `kv` policy and its weights.

    prefill(q, r) = uncached(q, r) · seconds_per_token(r) · (1 + slowdown(r) · decoding(r))
    ttft(q, r)    = wait(r) + prefill(q, r)                             (wait: backlog.py; rates: calibration.py)
    harm(q, r)    = (miss + queue · waiting + own_queue · waiting(r)) · prefill(q, r)
                  + decoding(r) · (interference · prefill(q, r) + stream_cost · output(q)) + pressure(q, r)
    cost          = ttft + harm

What a miss does to others, beyond its own time: its blocks push somebody else's out of the cache (`miss`), and those
who come while there is a queue wait the longer for it, each replica's share of them about as many as wait now, by
Little's law (`queue`, of the fleet's mean; `own_queue`, of that replica, keeps long prefills out of the way of many
short ones). So the busier the fleet, the more a cached token is worth; and an idle replica costs no more than a look at
its cache.
Every decoding stream waits while q's prefill takes its share of the steps, and each of its tokens takes a little
longer for one more stream in the batch. A replica whose KV cache would not hold its open requests preempts:
`pressure` is the time to compute the overflow again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scoring.decision import Query
from scoring.ledger import ReplicaLoad

# So little that it decides only between replicas that are otherwise equal: fewer open requests win.
OPEN_REQUEST_S = 1e-6


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the parts of the cost. `most_waiting` bounds what a queue adds: beyond it, everybody waits anyway."""

    miss: float = 1.0
    queue: float = 0.5
    own_queue: float = 0.1
    most_waiting: float = 32.0
    interference: float = 0.1
    stream_cost_s: float = 0.0001


def costs_s(query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int], weights: Weights) -> list[float]:
    """For each replica, the predicted seconds that the fleet pays for the request there: its own wait, and the harm to
    the others. `overlaps` (tokens) runs parallel to `loads`.
    """
    # One loop, on the hot path of every request.
    prompt_tokens, now = query.prompt_tokens, query.now
    waiting = sum([load.waiting for load in loads])
    prefill_weight = 1.0 + weights.miss + weights.queue * min(waiting / len(loads), weights.most_waiting)
    own_queue, interference = weights.own_queue, weights.interference
    stream_s = weights.stream_cost_s * query.output_tokens
    costs = []
    for load, overlap in zip(loads, overlaps, strict=True):
        learned, decoding = load.learned, load.decoding
        pace = learned.seconds_per_token
        prefill = (prompt_tokens - overlap) * pace
        weight = prefill_weight
        seconds = 0.0
        if load.waiting:
            seconds = load.wait_s(now)
            weight += own_queue * load.waiting
        if decoding:
            prefill *= 1.0 + learned.slowdown * decoding
            seconds += decoding * (prefill * interference + stream_s)
        capacity = load.capacity_tokens
        if capacity and load.context_tokens + prompt_tokens > capacity:
            seconds += (load.context_tokens + prompt_tokens - capacity) * pace
        costs.append(seconds + weight * prefill + (load.waiting + decoding) * OPEN_REQUEST_S)
    return costs
