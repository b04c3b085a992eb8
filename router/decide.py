"""The decision: from a prompt's block keys to the replica that gets the request, with a receipt.

Owns the order of the hot path's last step: overlaps, policy, receipt, booking, prediction. Must never do I/O or wait.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import msgspec

from router.fleet import Replica
from router.prompt import PromptKeys
from router.residency import Residency
from router.telemetry import Telemetry
from scoring.decision import Query, Receipt
from scoring.ledger import Booking
from scoring.policies import Policy

RECEIPTS_KEPT = 4096


class Decision(msgspec.Struct):
    """Where the request goes, the place it takes in that replica's load, and the receipt."""

    replica: Replica
    booking: Booking
    receipt: Receipt


class Decider:
    """Chooses by one policy; keeps the latest receipts, and counts."""

    def __init__(self, policy: Policy, residency: Residency, telemetry: Telemetry) -> None:
        self.policy = policy
        self._telemetry = telemetry
        self.receipts: deque[Receipt] = deque(maxlen=RECEIPTS_KEPT)
        self._residency = residency

    def decide(
        self,
        candidates: Sequence[Replica],
        names: tuple[str, ...],
        prompt: PromptKeys,
        query: Query,
        *,
        request_id: str,
        model: str,
        path: str,
        now: float,
    ) -> Decision:
        """`candidates` is not empty, `names` runs parallel to it. Books the request on the chosen replica at once."""
        tokens = prompt.tokens
        block_size = prompt.block_size
        # At least one token of a prompt is always computed: the one whose output comes first.
        most = tokens - 1 if tokens else 0
        overlaps = [min(blocks * block_size, most) for blocks in self._residency.overlaps(prompt.keys, candidates, now)]
        loads = [replica.load for replica in candidates]
        choice = self.policy.choose(query, loads, overlaps)
        chosen = candidates[choice.index]
        receipt = Receipt(
            request_id=request_id,
            at=time.time(),
            model=model,
            path=path,
            policy=self.policy.name,
            mode=prompt.mode,
            prompt_tokens=tokens,
            candidates=names,
            overlap_tokens=overlaps,
            queued_tokens=[load.queued_tokens for load in loads],
            running=[load.waiting + load.decoding for load in loads],
            costs=choice.costs,
            chosen=chosen.name,
            why=choice.why,
        )
        booking = chosen.load.book(tokens, tokens - overlaps[choice.index])
        self._residency.routed(chosen, prompt.keys, now)
        self._telemetry.routed[chosen.name] += 1
        self._telemetry.prompt_tokens += tokens
        self._telemetry.overlap_tokens += overlaps[choice.index]
        self.receipts.append(receipt)
        return Decision(chosen, booking, receipt)
