"""The regret of a run, from the receipts that its router gave.

Owns the way from a router's receipts to what `bench replay` would say of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadgen.compare.receipts import Recorded
from loadgen.compare.rescoring import RECORDED, Assumed, rescore
from scoring.decision import Receipt

TYPICAL_OUTPUT = 256  # what the router assumes of a request that does not say


def regret_mean_s(receipts: Sequence[Receipt]) -> float | None:
    """Predicted TTFT of the chosen replicas less that of the best, in seconds. `receipts` are in order of time; None
    where there are none.
    """
    recorded = [
        msgspec.json.decode(msgspec.json.encode(receipt), type=Recorded)
        for receipt in receipts
        if receipt.chosen in receipt.candidates
    ]
    return rescore(recorded, (), Assumed(TYPICAL_OUTPUT))[0][RECORDED].regret_mean_s if recorded else None
