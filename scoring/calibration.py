"""What each replica can do, learned from the first bytes it sends.

Owns the estimate of each replica's rates (learned.py has the formula): from the work before a first byte, the streams
that decoded when the request was booked, and the time it took.

Robust, because receipts lie: a prompt was cached after all, a network stalled, a queue was reordered. Each estimate is
a weighted median over a window of recent receipts (a receipt weighs the more, the longer its work), so that nearly half
of them may be wrong by any amount. When the last few agree that all before them is out of date, that is dropped: a
replica that slows down is followed within a dozen receipts. A replica of which little is known is taken for the median
of the others, and before there are any, for the prior.

Must never do I/O or read a clock. Costs some 13 µs a receipt, and a look-up when read.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import itemgetter
from statistics import median
from typing import NamedTuple

from scoring.learned import PRIOR, Learned
from scoring.ledger import FirstByte, ReplicaLoad

WINDOW = 48
COMPARE_S = 0.25  # between two looks at the whole fleet
ALIKE = 1.2  # replicas whose paces differ by no more than this factor are taken for equals
LESSON_GAP_S = 0.01  # between two receipts of a replica: a hundred a second say enough, and cost a thousandth of a core
REFRESH = 4  # receipts between two estimates of the pace
RESHAPE = 24  # and of the rest
PRIOR_WEIGHT = 3.0  # receipts that the prior is worth
SETTLED_WEIGHT = 3.0  # from which on a replica speaks for the fleet
HALF_WEIGHT_TOKENS = 256.0  # of work: such a receipt weighs half
RUN = 8  # of so many latest receipts,
AGREE = 6  # so many that are off to the same side end what was known before,
OFF = 1.7  # off by at least this factor
ROUNDS = 3  # in which overhead and pace are fitted to each other; an error shrinks to a quarter or so in each
MIN_SPREAD = 3.0  # between few and many decoding streams, for a slope to mean anything
MOST_SLOWDOWN = 0.1  # a stream: ten of them double the time of a prefill beside them
UNLIKE = 2.5  # times as much work in the largest third as in the smallest, for an overhead to be told apart
SPEEDS = (1e-7, 1.0)  # seconds a token that can be


class Lesson(NamedTuple):
    """A first byte, and what it counts for: `weight` is between 0 and 1."""

    work_tokens: int
    decoding: int
    ttft_s: float
    weight: float


class ReplicaRates:
    """One replica's window and what it says. `weight` is that of all in the window."""

    def __init__(self, prior: Learned) -> None:
        self.learned = prior
        self.weight = 0.0
        self.taught_at = -math.inf
        self._prior = prior
        self._window: deque[Lesson] = deque(maxlen=WINDOW)
        self._seen = 0

    def add(self, work_tokens: int, decoding: int, ttft_s: float) -> None:
        weight = work_tokens / (work_tokens + HALF_WEIGHT_TOKENS)
        self._window.append(Lesson(work_tokens, decoding, ttft_s, weight))
        self._seen += 1
        early = self._seen <= RUN
        if early or self._seen % REFRESH == 0:
            self._drop_what_is_past()
            self._estimate(shape=early or self._seen % RESHAPE == 0)

    def assume(self, prior: Learned) -> None:
        """What to take it for while little is known; takes effect with the next estimate."""
        self._prior = prior

    def _drop_what_is_past(self) -> None:
        """If nearly all of the latest receipts are slower, or faster, than the estimate can explain, keep only them."""
        if len(self._window) <= RUN:
            return
        latest = list(self._window)[-RUN:]
        paces = sorted(pace for pace, _ in _paces(latest, self.learned))
        known = self.learned.seconds_per_token
        if paces[-AGREE] > known * OFF or paces[AGREE - 1] < known / OFF:
            self._window.clear()
            self._window.extend(latest)

    def _estimate(self, *, shape: bool) -> None:
        window, prior = list(self._window), self._prior
        learned = self.learned if self._seen > 1 else prior
        if shape:
            learned = replace(learned, slowdown=_slowdown(window, learned))
            learned = replace(learned, overhead_s=_overhead(window, learned))
        paces = _paces(window, learned)
        self.weight = sum(weight for _, weight in paces)
        if self.weight < PRIOR_WEIGHT:
            paces.append((prior.seconds_per_token, PRIOR_WEIGHT - self.weight))
        pace = _possible(weighted_median(paces))
        self.learned = Learned(pace, learned.slowdown, learned.overhead_s, self._seen)


class Calibration:
    """The rates of every replica of a fleet, by name. What is learned stands in the `learned` of the loads attached."""

    def __init__(self, prior: Learned = PRIOR) -> None:
        self._prior = prior
        self._replicas: dict[str, ReplicaRates] = {}
        self._loads: dict[str, ReplicaLoad] = {}
        self._fleet = prior
        self._compared_at = -math.inf

    def attach(self, load: ReplicaLoad) -> None:
        """Learn of this load's replica from now on; another load of its name is another incarnation, perhaps on other
        hardware.
        """
        if self._loads.get(load.name) is load:
            return
        self.forget(load.name)
        self._loads[load.name] = load
        load.learned = self.fleet()
        load.taught = self._on_first_byte

    def detach(self, load: ReplicaLoad) -> None:
        """It left."""
        load.taught = None
        if self._loads.get(load.name) is load:
            self.forget(load.name)

    def of(self, replica: str) -> Learned:
        """What to expect of it now; of one never heard of, what the others are like."""
        rates = self._replicas.get(replica)
        return rates.learned if rates is not None else self.fleet()

    def observe(self, replica: str, work_tokens: int, decoding: int, ttft_s: float) -> None:
        """A first byte came. Receipts that cannot be (no work, no time, or no finite one) are left out."""
        if work_tokens <= 0 or decoding < 0 or not 0.0 < ttft_s < math.inf:
            return
        rates = self._replicas.get(replica)
        if rates is None:
            rates = self._replicas[replica] = ReplicaRates(self.fleet())
        elif rates.weight < PRIOR_WEIGHT:
            rates.assume(self.fleet(besides=replica))
        rates.add(work_tokens, decoding, ttft_s)

    def forget(self, replica: str) -> None:
        """It left, or started anew."""
        self._replicas.pop(replica, None)
        load = self._loads.pop(replica, None)
        if load is not None:
            load.taught = None  # what is still open there says nothing of the next of its name

    def fleet(self, besides: str = "") -> Learned:
        """The median of the replicas of which enough is known; the prior while there is none."""
        known = [
            rates.learned
            for name, rates in self._replicas.items()
            if name != besides and rates.weight >= SETTLED_WEIGHT
        ]
        if not known:
            return self._prior
        return Learned(
            median(learned.seconds_per_token for learned in known),
            median(learned.slowdown for learned in known),
            median(learned.overhead_s for learned in known),
        )

    def _on_first_byte(self, load: ReplicaLoad, first: FirstByte) -> None:
        rates = self._replicas.get(load.name)
        if rates is not None and first.at - rates.taught_at < LESSON_GAP_S:
            return
        self.observe(load.name, first.work_tokens, first.decoding, first.ttft_s)
        rates = self._replicas.get(load.name)
        if rates is None:
            return
        rates.taught_at = first.at
        if first.at - self._compared_at >= COMPARE_S:
            self._compared_at = first.at
            self._compare()
        else:
            load.learned = self._judged(rates.learned)

    def _compare(self) -> None:
        """Look at all replicas anew: what the fleet is like, and who is like it."""
        self._fleet = self.fleet()
        for name, load in self._loads.items():
            rates = self._replicas.get(name)
            load.learned = self._fleet if rates is None else self._judged(rates.learned)

    def _judged(self, learned: Learned) -> Learned:
        """Estimates scatter. Equal replicas must have equal rates, or the one that seems fastest gets whatever comes
        while all are idle.
        """
        fleet = self._fleet
        alike = 1 / ALIKE < learned.seconds_per_token / fleet.seconds_per_token < ALIKE
        return replace(fleet, receipts=learned.receipts) if alike else learned


def weighted_median(values: Sequence[tuple[float, float]]) -> float:
    """The least value up to which at least half of the weight lies. `values` are (value, weight), not empty."""
    half = sum(weight for _, weight in values) / 2
    passed = 0.0
    ordered = sorted(values)
    for value, weight in ordered:
        passed += weight
        if passed >= half:
            return value
    return ordered[-1][0]


def _possible(pace: float) -> float:
    return min(max(pace, SPEEDS[0]), SPEEDS[1])


def _paces(receipts: Iterable[Lesson], shape: Learned) -> list[tuple[float, float]]:
    """Of each, the seconds a token with nothing decoding beside it, and the weight."""
    overhead, slowdown = shape.overhead_s, shape.slowdown
    return [
        ((ttft - overhead) / (work * (1.0 + slowdown * decoding)), weight) for work, decoding, ttft, weight in receipts
    ]


def _slowdown(window: Sequence[Lesson], known: Learned) -> float:
    """A resistant line (Brown and Mood) of the pace over the decoding streams: through the medians of the halves with
    fewer and with more of them.

    A known overhead beyond the times seen since would make the few seem to take no time, and many endlessly longer.
    """
    ordered = sorted(window, key=itemgetter(1))
    half = len(ordered) // 2
    few, many = ordered[:half], ordered[-half:]
    if half < AGREE:
        return known.slowdown
    low, high = few[half // 2].decoding, many[half // 2].decoding
    if high - low < MIN_SPREAD:
        return known.slowdown
    alone = replace(known, slowdown=0.0, overhead_s=min(known.overhead_s, _shortest(window)))
    fast, slow = (weighted_median(_paces(part, alone)) for part in (few, many))
    slope = max(slow - fast, 0.0) / (high - low)
    pace = max(fast - slope * low, fast / 10, SPEEDS[0])
    return min(slope / pace, MOST_SLOWDOWN)


def _overhead(window: Sequence[Lesson], known: Learned) -> float:
    """What is left of the time of the requests with the least work. Where all work is alike, it cannot be told.

    The pace taken for that is found anew: first the slope of a resistant line of time over work, then that of all
    receipts less the overhead so far. With the known one, a pace that is too high and an overhead that is too long
    would prove each other for ever: short requests would seem to be overhead only, and all others to be computed in no
    time. Nor is it ever longer than the shortest time seen; what cannot be told is forgotten by and by.
    """
    shortest = _shortest(window)
    points = sorted((work * (1.0 + known.slowdown * decoding), ttft) for work, decoding, ttft, _ in window)
    third = len(points) // 3
    least, most = points[:third], points[-third:]
    if third < AGREE // 2:
        return min(known.overhead_s, shortest)
    (few, soon), (much, late) = (map(median, zip(*part, strict=True)) for part in (least, most))
    if much < UNLIKE * few:
        return min(known.overhead_s, shortest) / 2
    overhead, pace = 0.0, max(late - soon, 0.0) / (much - few)
    for _ in range(ROUNDS):
        overhead = min(max(median(ttft - pace * work for work, ttft in least), 0.0), shortest)
        pace = weighted_median(_paces(window, replace(known, overhead_s=overhead)))
    return overhead


def _shortest(window: Iterable[Lesson]) -> float:
    return min(lesson.ttft_s for lesson in window)
