"""What a router knew around each recorded decision: the candidates' loads, and what each replica can do.

Owns what receipts do not say of themselves and the receipts before them do: the requests that were open, when a queue
last moved, and each replica's rates, learned from the first bytes that had come by then (scoring/calibration.py). Must
never change what a receipt does say, nor look ahead of the decision it stands at.

Where receipts are missing this knows too little: at the start of a file, of the requests that were open before it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from itertools import count
from typing import NamedTuple

from loadgen.compare.receipts import Recorded
from scoring.calibration import Calibration
from scoring.learned import Learned
from scoring.ledger import ReplicaLoad


class _Event(NamedTuple):
    """A first byte, which teaches how long its work took, or an end. `expected_tokens`: as in the ledger's Booking."""

    moment: float
    number: int
    is_end: bool
    receipt: Recorded
    expected_tokens: int
    decoding: int


class Surroundings:
    """Receipts come in order, each to `loads` and then to `sent`.

    `prior` is what to expect of a replica of which no receipt has told. `capacity_tokens` is the KV cache of one
    replica, 0 when unknown: receipts do not hold it.
    """

    def __init__(self, prior: Learned, capacity_tokens: int = 0) -> None:
        self.calibration = Calibration(prior)
        self._capacity_tokens = capacity_tokens
        self._context: Counter[str] = Counter()
        self._loads: dict[str, ReplicaLoad] = {}
        self._due: list[_Event] = []
        self._number = count()

    def loads(self, receipt: Recorded) -> tuple[ReplicaLoad, ...]:
        """Of its candidates, as at its decision. A replica's load is the same object each time, with new sums."""
        while self._due and self._due[0].moment <= receipt.at:
            self._happen(heapq.heappop(self._due))
        return tuple(self._load(name, said) for name, said in zip(receipt.candidates, receipt.loads, strict=True))

    def sent(self, receipt: Recorded) -> None:
        """It is open on the chosen replica from now on, until its end if that is known."""
        load = self._load(receipt.chosen, receipt.loads[receipt.position])
        if not load.queued_tokens:
            load.moved_at = receipt.at
        self._context[receipt.chosen] += receipt.prompt_tokens
        expected_tokens = load.left_tokens(receipt.at) + booked(receipt) - load.surprise_tokens
        if receipt.ttft_s is not None:
            self._expect(receipt.at + receipt.ttft_s, False, receipt, expected_tokens, load.decoding)
        if receipt.duration_s is not None or receipt.outcome is not None:  # else it had not ended when this was written
            self._expect(receipt.at + max(receipt.duration_s or 0.0, receipt.ttft_s or 0.0), True, receipt)

    def finish(self) -> None:
        """Lets everything happen that is known, beyond the last decision."""
        while self._due:
            self._happen(heapq.heappop(self._due))

    def _expect(
        self, moment: float, is_end: bool, receipt: Recorded, expected_tokens: int = 0, decoding: int = 0
    ) -> None:
        heapq.heappush(self._due, _Event(moment, next(self._number), is_end, receipt, expected_tokens, decoding))

    def _happen(self, event: _Event) -> None:
        receipt = event.receipt
        load = self._loads[receipt.chosen]
        if event.is_end:
            self._context[receipt.chosen] -= receipt.prompt_tokens
            load.served += 1
            return
        if receipt.cached_tokens is not None and receipt.mode == "exact":
            load.surprise_tokens += uncached(receipt, receipt.cached_tokens) - booked(receipt)
        load.moved_at = event.moment  # as in the ledger, a request that ends without a first byte moves no queue
        if receipt.happened_s is not None:
            self.calibration.observe(
                receipt.chosen, event.expected_tokens + load.surprise_tokens, event.decoding, receipt.happened_s
            )

    def _load(self, name: str, said: tuple[int, ...]) -> ReplicaLoad:
        load = self._loads.get(name)
        if load is None:
            load = self._loads[name] = ReplicaLoad(name=name, capacity_tokens=self._capacity_tokens)
        load.queued_tokens, load.waiting, load.decoding = said[:3]
        load.context_tokens = max(self._context[name], load.queued_tokens)
        load.learned = self.calibration.of(name)
        return load


def booked(receipt: Recorded) -> int:
    """Prompt tokens that the chosen replica was expected to compute."""
    return uncached(receipt, receipt.overlap_tokens[receipt.position])


def uncached(receipt: Recorded, cached_tokens: int) -> int:
    """Prompt tokens that a replica has to compute: one at least."""
    return max(1, receipt.prompt_tokens - cached_tokens)


def replicas_of(receipts: Iterable[Recorded]) -> list[str]:
    """Every candidate's name, in order of appearance."""
    return list(dict.fromkeys(name for receipt in receipts for name in receipt.candidates))
