"""The judge of a replay: how long a first token would have taken on each replica, had the request gone there.

Owns the prediction, the same for every policy that is judged. Must never look at what a policy thinks of its choice.

    ttft(q, r) = overhead(r) + wait(r) + uncached(q, r) · pace(r) · (1 + slowdown(r) · decoding(r))

`wait` is for what was queued there, less what must have been computed of it since the queue last moved. The rates are
learned from the receipts themselves, for each replica, at each decision from the first bytes that had come by then;
where few had come, what the whole file says of the fleet stands in.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.compare.receipts import Recorded
from loadgen.compare.surroundings import Surroundings, replicas_of, uncached
from scoring.learned import Learned
from scoring.ledger import ReplicaLoad


def hindsight(receipts: Sequence[Recorded], prior: Learned) -> tuple[Learned, dict[str, Learned]]:
    """What all receipts together say of the fleet, and of each of its replicas at the end. `prior` where they say
    nothing.
    """
    whole = Surroundings(prior)
    for receipt in receipts:
        whole.loads(receipt)
        whole.sent(receipt)
    whole.finish()
    return whole.calibration.fleet(), {name: whole.calibration.of(name) for name in replicas_of(receipts)}


def ttft_s(load: ReplicaLoad, uncached_tokens: int, now: float) -> float:
    """Predicted of a request that comes now."""
    learned = load.learned
    return learned.overhead_s + load.wait_s(now) + learned.work_s(uncached_tokens, load.decoding)


def ttfts_s(receipt: Recorded, loads: Sequence[ReplicaLoad]) -> list[float]:
    """Predicted for each candidate; `loads` runs parallel to them."""
    return [
        ttft_s(load, uncached(receipt, overlap), receipt.at)
        for load, overlap in zip(loads, receipt.overlap_tokens, strict=True)
    ]
