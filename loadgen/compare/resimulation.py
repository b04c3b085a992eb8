"""Recorded requests against a fleet of another size, in simulated time: here, consequences follow.

Owns the fleet that is imagined. Must never claim to know what is in its caches: receipts hold no prompts, so it assumes

- requests come when they came, once each, and need after their first token as long as they did;
- a replica computes one prompt after the other, at the pace that the receipts show of it at their end; one that is new,
  at the fleet's. Policies know these paces;
- a replica that was there holds of each prompt what was recorded of it, wherever earlier requests now go; one that is
  new holds nothing, ever. So a larger fleet looks worse than it would be once warm, and a policy that keeps prefixes
  together gains nothing by it beyond what it gained when recorded;
- a fleet that is smaller has lost the replicas that appeared last; what only they could serve, all can.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from random import Random

import msgspec

from loadgen.compare.judge import hindsight, ttft_s
from loadgen.compare.receipts import Recorded
from loadgen.compare.rescoring import Assumed, check_keys, query_of
from loadgen.compare.surroundings import replicas_of, uncached
from loadgen.reports.statistics import max_over_mean, mean, percentile, ratio
from loadgen.virtual.clock import STEP, VirtualClock
from scoring.learned import Learned
from scoring.ledger import Booking, ReplicaLoad
from scoring.policies import Policy, make_policy


class Resimulated(msgspec.Struct, frozen=True):
    """One policy over the imagined fleet. Times in seconds, from a request's arrival.

    `regret_*`: the predicted TTFT of the choice less that of the best candidate, at each decision, from the loads that
    the policy itself brought about. `balance_*` as in Rescored.
    """

    requests: int
    hit_rate: float | None
    ttft_mean_s: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    regret_mean_s: float | None
    regret_p99_s: float | None
    balance_tokens: float | None
    balance_requests: float | None
    requests_by_replica: dict[str, int]


def resimulate(
    receipts: Sequence[Recorded], policies: Sequence[str], replicas: int, assumed: Assumed
) -> dict[str, Resimulated]:
    """Each policy over `replicas` replicas. Receipts in order of time. Raises ReceiptsError (see check_keys), and
    ValueError for an unknown policy.
    """
    check_keys(policies, receipts)
    receipts = last_attempts(receipts)
    names = fleet_of(receipts, replicas)
    fleet, learned = hindsight(receipts, assumed.prior)
    rates = {name: learned.get(name, fleet) for name in names}
    return {
        name: _Fleet(make_policy(name, Random(f"{assumed.seed} {name}")), rates, assumed).run(receipts)
        for name in policies
    }


def last_attempts(receipts: Sequence[Recorded]) -> list[Recorded]:
    """Without those that were followed by another attempt of the same request."""
    attempts = {(receipt.request_id, receipt.attempts) for receipt in receipts if receipt.request_id}
    return [receipt for receipt in receipts if (receipt.request_id, receipt.attempts + 1) not in attempts]


def fleet_of(receipts: Sequence[Recorded], replicas: int) -> list[str]:
    """The names: those of the receipts in order of appearance, then new ones."""
    known = replicas_of(receipts)
    taken = set(known)
    new = (name for number in range(len(known) + replicas) if (name := f"new{number}") not in taken)
    return [*known[:replicas], *(next(new) for _ in range(replicas - len(known)))]


class _Replica:
    """One prompt after the other; what decodes only slows the prompts."""

    def __init__(self, name: str, rates: Learned, capacity_tokens: int, clock: VirtualClock) -> None:
        self.load = ReplicaLoad(name=name, capacity_tokens=capacity_tokens)
        self.load.learned = rates
        self.ttfts_s: list[float] = []
        self._clock = clock
        self._queue: deque[tuple[float, int, float, Booking]] = deque()

    def take(self, uncached_tokens: int, decoding_s: float, booking: Booking) -> None:
        self._queue.append((self._clock.now, uncached_tokens, decoding_s, booking))
        if len(self._queue) == 1:
            self._begin()

    def _begin(self) -> None:
        work_s = self.load.learned.work_s(self._queue[0][1], self.load.decoding)
        self._clock.at(self._clock.now + work_s, self._end, STEP)

    def _end(self) -> None:
        came, _, decoding_s, booking = self._queue.popleft()
        now = self._clock.now
        self.ttfts_s.append(now - came + self.load.learned.overhead_s)
        booking.first_byte(now)
        self._clock.at(now + decoding_s, lambda: booking.release(now + decoding_s))
        if self._queue:
            self._begin()


class _Fleet:
    """One policy's run."""

    def __init__(self, policy: Policy, rates: dict[str, Learned], assumed: Assumed) -> None:
        self._policy = policy
        self._clock = VirtualClock()
        self._replicas = {
            name: _Replica(name, its, assumed.capacity_tokens, self._clock) for name, its in rates.items()
        }
        self._output_tokens = assumed.output_tokens
        self._regrets: list[float] = []
        self._prompt = 0
        self._overlap = 0
        self._tokens: Counter[str] = Counter(dict.fromkeys(rates, 0))
        self._requests: Counter[str] = Counter(dict.fromkeys(rates, 0))

    def run(self, receipts: Sequence[Recorded]) -> Resimulated:
        known = set(replicas_of(receipts))
        new = [replica for name, replica in self._replicas.items() if name not in known]
        start = receipts[0].at
        for receipt in receipts:
            self._clock.at(receipt.at - start, partial(self._arrive, receipt, new))
        self._clock.run()
        ttfts = [ttft for replica in self._replicas.values() for ttft in replica.ttfts_s]
        return Resimulated(
            requests=len(ttfts),
            hit_rate=ratio(self._overlap, self._prompt),
            ttft_mean_s=mean(ttfts),
            ttft_p50_s=percentile(ttfts, 50),
            ttft_p99_s=percentile(ttfts, 99),
            regret_mean_s=mean(self._regrets),
            regret_p99_s=percentile(self._regrets, 99),
            balance_tokens=max_over_mean(self._tokens.values(), len(self._tokens)),
            balance_requests=max_over_mean(self._requests.values(), len(self._tokens)),
            requests_by_replica=dict(self._requests),
        )

    def _arrive(self, receipt: Recorded, new: Sequence[_Replica]) -> None:
        held = dict(zip(receipt.candidates, receipt.overlap_tokens, strict=True))
        there = [self._replicas[name] for name in receipt.candidates if name in self._replicas]
        candidates = [*there, *new] or list(self._replicas.values())
        overlaps = [held.get(replica.load.name, 0) for replica in candidates]
        now = self._clock.now
        query = query_of(receipt, self._output_tokens, now)
        at = self._policy.choose(query, [replica.load for replica in candidates], overlaps).index
        expected = [
            ttft_s(replica.load, uncached(receipt, overlap), now)
            for replica, overlap in zip(candidates, overlaps, strict=True)
        ]
        self._regrets.append(expected[at] - min(expected))
        chosen, tokens = candidates[at], uncached(receipt, overlaps[at])
        self._prompt += receipt.prompt_tokens
        self._overlap += overlaps[at]
        self._tokens[chosen.load.name] += tokens
        self._requests[chosen.load.name] += 1
        chosen.take(tokens, receipt.decoding_s, chosen.load.book(receipt.prompt_tokens, tokens, now))
