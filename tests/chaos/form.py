"""The two forms of these tests: the short one is part of every `make test`, the full one is `make chaos`."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Form:
    """`hold_s`: how long a fault lasts at least. `stop_s`: for how long Redis stands still. `calm_s`: for how long
    nothing is wrong before that. `rounds`: how often what comes and goes quickly does so.
    """

    hold_s: float
    stop_s: float
    calm_s: float
    rounds: int


FULL = os.environ.get("RADIXGATE_CHAOS") == "full"
# In the full form Redis is away for longer than a lease lasts (10 s), and after it was quiet for so long that routers
# end leases again.
FORM = Form(hold_s=3.0, stop_s=15.0, calm_s=16.0, rounds=2) if FULL else Form(0.5, 3.0, 0.0, 1)
