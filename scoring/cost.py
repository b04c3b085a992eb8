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

from scoring.decision import Query
from scoring.ledger import ReplicaLoad
from scoring.standing import Standing


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the parts of the cost. `most_waiting` bounds the least queue: beyond it, everybody waits anyway."""

    miss: float = 1.2
    queue: float = 2.0
    own_queue: float = 0.2
    most_waiting: int = 16
    common_s: float = 1.0
    interference: float = 0.2
    stream_share: float = 0.007  # of a step of some 15 ms, a stream's part is about 0.1 ms


def costs_s(query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int], weights: Weights) -> list[float]:
    """For each replica, the predicted seconds that the fleet pays for the request there: its own wait, and the harm to
    the others. `overlaps` (tokens) runs parallel to `loads`, of which there is one at least.
    """
    # On the hot path of every request: no calls in the loops, little but floats, and backlog.wait_s written out.
    count, now, tokens = len(loads), query.now, float(query.prompt_tokens)
    if len(overlaps) != count:
        raise ValueError(f"{count} loads and {len(overlaps)} overlaps do not run parallel")
    pace_of_one, alike = loads[0].learned.seconds_per_token, True
    least_waiting = float(weights.most_waiting)
    standings: list[Standing] = []
    for load in loads:
        standing = load.standing
        if standing is None:
            standing = load.stand()
        standings.append(standing)
        if standing[0] < least_waiting:
            least_waiting = standing[0]
        if standing[1] != pace_of_one:
            alike = False
    mean_pace = pace_of_one if alike else count / sum([1.0 / standing[1] for standing in standings])
    miss_s = mean_pace * (weights.miss + weights.queue * least_waiting)
    own_queue_s, interference = mean_pace * weights.own_queue, weights.interference
    stream_s = weights.stream_share * query.answer_s
    common = most_common = 0
    if overlaps.count(0) <= (count - 1) // 2:
        common = sorted(overlaps)[(count - 1) // 2]
        most_common = int(weights.common_s / mean_pace)
    costs = []
    pairs = zip(standings, overlaps)  # noqa: B905 - as long as each other (see above); `strict` costs 150 ns
    for (waiting, pace, slowed, seconds, room, decoding, expected, head, moved_at), overlap in pairs:
        if overlap < common:
            overlap = min(common, overlap + most_common)
        uncached = tokens - overlap if overlap else tokens
        prefill_s = uncached * slowed
        seconds += uncached * miss_s
        if tokens > room:
            seconds += (tokens - room) * pace
        if decoding:
            seconds += decoding * (prefill_s * interference + stream_s)
        if waiting:
            elapsed = now - moved_at
            if elapsed < 0.0:
                elapsed = 0.0
            if elapsed < head:
                wait = expected - elapsed
            else:
                wait, late = expected - head, elapsed - expected
                if late > wait:
                    wait = late
            seconds += wait + own_queue_s * waiting * uncached
        costs.append(seconds + prefill_s)
    return costs
