"""A router in simulated time: the real index, predictions, ledger and policy, without the network.

Owns what this router believes of each replica, and every booking. Must never look into a replica: it knows what it is
told, when it is told. Overlaps are found as router/residency.py finds them for exact prompts: what a replica reported,
or what was sent there lately, whichever is longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loadgen.virtual.clock import VirtualClock
from loadgen.virtual.prompts import Ask
from radix.events import Snapshot
from radix.feed import ReplicaFeed
from radix.index import PrefixIndex
from radix.predicted import PredictedResidency
from router.residency import HINT_BLOCKS, HINT_TTL_S
from scoring.answers import TYPICAL_TOKENS, AnswerTimes
from scoring.calibration import Calibration
from scoring.decision import Query
from scoring.ledger import Booking, ReplicaLoad
from scoring.policies import Policy

SWEEP_RUNS = 4096


class Seat:
    """One replica as the router knows it."""

    __slots__ = ("feed", "hinted", "load")

    def __init__(self, load: ReplicaLoad, feed: ReplicaFeed, hinted: int) -> None:
        self.load = load
        self.feed = feed
        self.hinted = hinted


class VirtualRouter:
    """`block_tokens` is how many prompt tokens a block key stands for. Without `hints`, only reports count."""

    def __init__(self, policy: Policy, clock: VirtualClock, block_tokens: int, *, hints: bool = True) -> None:
        self.policy = policy
        self.seats: list[Seat] = []
        self._clock = clock
        self._block_tokens = block_tokens
        self._believes_hints = hints
        self._index = PrefixIndex()
        self._index.on_removed = self._on_removed
        self._hints = PredictedResidency(capacity_blocks=HINT_BLOCKS, ttl_s=HINT_TTL_S)
        self._hinted: dict[int, int] = {}  # by the index's id
        self.answer_times = AnswerTimes()
        self._calibration = Calibration()

    def join(self, name: str, capacity_tokens: int) -> Seat:
        """A replica that holds nothing yet; its events go to the seat's feed."""
        seat = Seat(ReplicaLoad(name, capacity_tokens), ReplicaFeed(self._index), self._hints.add_replica())
        seat.feed.restore(Snapshot(name, 0, 0, ()))  # it reports: the first batch begins no new incarnation
        self._hinted[seat.feed.rid] = seat.hinted
        self.seats.append(seat)
        self._calibration.attach(seat.load)
        return seat

    def close(self, seat: Seat) -> None:
        """The replica gets no more requests; those it has go on."""
        if seat in self.seats:
            self.seats.remove(seat)
            self._calibration.detach(seat.load)

    def leave(self, seat: Seat) -> None:
        """The replica is gone, and all that it held."""
        self.close(seat)
        seat.feed.close()
        self._hints.retire_replica(seat.hinted)
        while self._index.sweep(SWEEP_RUNS):
            pass

    def place(self, ask: Ask) -> tuple[Seat, Booking]:
        """Chooses a replica for the request and books it there. There must be one."""
        seats = self.seats
        blocks = self._overlaps(ask.keys)
        most = ask.prompt_tokens - 1
        overlaps = [min(count * self._block_tokens, most) for count in blocks]
        now = self._clock.now
        prefix = ask.keys[:2][-1] if ask.keys else 0
        # How long an answer will be, nobody tells a router.
        answer_s = self.answer_times.predict(TYPICAL_TOKENS)
        query = Query(ask.prompt_tokens, TYPICAL_TOKENS, prefix=prefix, now=now, answer_s=answer_s)
        chosen = self.policy.choose(query, [seat.load for seat in seats], overlaps).index
        seat = seats[chosen]
        booking = seat.load.book(ask.prompt_tokens, ask.prompt_tokens - overlaps[chosen], now)
        if self._believes_hints and ask.keys:
            self._hints.record(seat.hinted, ask.keys, now)
        return seat, booking

    def held(self, seat: Seat) -> Iterator[tuple[int | None, list[int]]]:
        """What the replica has reported to hold, as PrefixIndex.held."""
        return self._index.held(seat.feed.rid)

    def _overlaps(self, keys: Sequence[int]) -> list[int]:
        if not keys:
            return [0] * len(self.seats)
        reported = self._index.match(keys)
        hinted = self._hints.match(keys, self._clock.now)
        return [max(reported.get(seat.feed.rid, 0), hinted.get(seat.hinted, 0)) for seat in self.seats]

    def _on_removed(self, rid: int, keys: Sequence[int] | None) -> None:
        hinted = self._hinted[rid]
        if keys is None:
            self._hints.clear(hinted)
        else:
            self._hints.evicted(hinted, keys)
