"""The demo's readers: the workload `rag` as it is by default, at the demo's rate, asked as chats.

Owns these choices. Must never look at a server: every policy is asked by the same readers, at the same times. What they
ask next holds the answers that they really got, as a conversation does.
"""

from __future__ import annotations

from loadgen.plans.catalogue import make_plan
from loadgen.plans.plan import Plan
from loadgen.plans.prompts import Prompts

RATE = 1.7
DURATION_S = 20.0


def readers(seed: int, duration_s: float = DURATION_S, rate: float = RATE) -> Plan:
    """`rate` new readers a second. Raises ValueError, which names the parameter, for readers that cannot be."""
    return make_plan("rag", seed=seed, arrivals=f"poisson:{rate!r}", duration_s=duration_s)


def chats(plan: Plan) -> Prompts:
    """What they say, with the answers received as its history."""
    return Prompts(plan, "chat", "real")
