"""Predicted times: what sending a request to a replica costs, in seconds.

Owns the formula of the `kv` policy and its rates. The rates are fixed priors for now.

    ttft(q, r) = (queued_tokens(r) + miss_weight * uncached(q, r)) / prefill_rate
    harm(q, r) = decoding(r) * (interference * uncached(q, r) / prefill_rate + stream_cost * output(q))
               + pressure(q, r)
    cost       = ttft + harm

A missed token weighs more than one (`miss_weight`), because its blocks also push somebody else's out of the cache.
Every decoding stream waits while q's prefill takes its share of the steps, and each of its tokens takes a little
longer for one more stream in the batch. A replica whose KV cache would not hold its open requests preempts:
`pressure` is the time to compute the overflow again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scoring.ledger import ReplicaLoad

# So little that it decides only between replicas that are otherwise equal: fewer open requests win.
OPEN_REQUEST_S = 1e-6


@dataclass(frozen=True, slots=True)
class Rates:
    """What a replica does in a second, and what the weights of the cost are."""

    prefill_tokens_per_s: float = 8000.0
    miss_weight: float = 2.0
    interference: float = 0.1
    stream_cost_s: float = 0.0001


def costs_s(
    loads: Sequence[ReplicaLoad], overlaps: Sequence[int], prompt_tokens: int, output_tokens: int, rates: Rates
) -> list[float]:
    """For each replica, the predicted seconds that the fleet pays for the request there: its own wait, and the harm to
    the others. `overlaps` (tokens) runs parallel to `loads`.
    """
    # One loop, on the hot path of every request.
    per_token = 1.0 / rates.prefill_tokens_per_s
    per_miss = per_token * rates.miss_weight
    per_decoder = per_token * rates.interference
    stream_s = rates.stream_cost_s * output_tokens
    costs = []
    for load, overlap in zip(loads, overlaps, strict=True):
        uncached = prompt_tokens - overlap
        seconds = load.queued_tokens * per_token + uncached * per_miss
        decoding = load.decoding
        if decoding:
            seconds += decoding * (uncached * per_decoder + stream_s)
        capacity = load.capacity_tokens
        if capacity and load.context_tokens + prompt_tokens > capacity:
            seconds += (load.context_tokens + prompt_tokens - capacity) * per_token
        costs.append(seconds + (load.waiting + decoding) * OPEN_REQUEST_S)
    return costs
