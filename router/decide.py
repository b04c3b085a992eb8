"""The decision: from a prompt's block keys to the replica that gets the request, with a receipt.

Owns the order of the hot path's last step: overlaps, policy, receipt, booking, prediction. Must never do I/O or wait.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from router.fleet import Replica
from router.prompt import PromptKeys
from router.residency import Residency
from router.telemetry import Telemetry
from scoring.decision import Query, Receipt
from scoring.ledger import Booking
from scoring.policies import Policy

# Of a prompt with exact keys, others are told what is new, but no more than shows them a sibling: reports follow.
NEWS_BLOCKS = 128
RECEIPTS_KEPT = 1024  # about a megabyte: more would push the hot path out of the processor's caches


class Decision(msgspec.Struct):
    """Where the request goes, the place it takes in that replica's load, and the receipt."""

    replica: Replica
    booking: Booking
    receipt: Receipt
    residency: Residency
    keys: list[int]
    exact: int
    kept: int  # blocks that were believed there before this request

    def unplaced(self) -> None:
        """The request did not leave its blocks there after all: it failed."""
        self.residency.unplaced(self.replica, self.keys, self.exact, self.kept)


class Decider:
    """Chooses by one policy; keeps the latest receipts, and counts.

    `on_routed`, when given, hears where each prompt went: replica's name, block size of exact keys (else 0), keys.
    """

    def __init__(self, policy: Policy, residency: Residency, telemetry: Telemetry) -> None:
        self.policy = policy
        self._telemetry = telemetry
        self.receipts: deque[Receipt] = deque(maxlen=RECEIPTS_KEPT)
        self._residency = residency
        self.on_routed: Callable[[str, int, Sequence[int]], None] | None = None

    def decide(
        self,
        candidates: Sequence[Replica],
        names: tuple[str, ...],
        prompt: PromptKeys,
        query: Query,
        request_id: str,
        model: str,
        path: str,
        now: float,
    ) -> Decision:
        """`candidates` is not empty, `names` runs parallel to it. Books the request on the chosen replica at once."""
        keys = prompt.keys
        tokens = prompt.tokens
        exact = prompt.block_size if prompt.mode == "exact" else 0
        blocks = overlaps = self._residency.overlaps(keys, candidates, exact, now)
        if keys:
            # At least one token of a prompt is always computed: the one whose output comes first.
            block_size, most = prompt.block_size, tokens - 1
            overlaps = [count and min(count * block_size, most) for count in blocks]
        loads = [replica.load for replica in candidates]
        for load in loads:
            if load.silent:
                load.settle(now)
        choice = self.policy.choose(query, loads, overlaps)
        chosen = candidates[choice.index]
        overlap = overlaps[choice.index]
        receipt = Receipt(
            request_id,
            time.time(),
            model,
            path,
            self.policy.name,
            prompt.mode,
            tokens,
            names,
            overlaps,
            [load.counts() for load in loads],
            choice.costs,
            chosen.name,
            choice.why,
            query.output_tokens,
            query.prefix,
            query.streamed,
            query.answer_s,
        )
        booking = chosen.load.book(tokens, tokens - overlap, now, streamed=query.streamed)
        self._residency.routed(chosen, keys, exact, now)
        kept = blocks[choice.index]
        if self.on_routed is not None and not (exact and kept == len(keys)):
            self.on_routed(chosen.name, exact, keys[: kept + NEWS_BLOCKS] if exact else keys)
        telemetry = self._telemetry
        telemetry.routed[chosen.name] += 1
        telemetry.prompt_tokens += tokens
        telemetry.overlap_tokens += overlap
        self.receipts.append(receipt)
        return Decision(chosen, booking, receipt, self._residency, keys, exact, kept)
