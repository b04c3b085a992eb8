"""Hit rates to judge a routing by: of one cache without bounds, which none exceeds, and of a fleet's memory as one LRU
pool, which a better eviction can exceed.

Owns these two yardsticks of a plan. They know no time: requests come one after the other in the order of `order`, and
each finds what all before it left. Must never give a request more than a replica could: only full blocks are found, and
the last token is always computed. A chat template's own tokens are not counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import count

from loadgen.plans.order import in_order
from loadgen.plans.plan import Plan, Session
from loadgen.plans.prompts import Prompts
from radix.blocks import block_keys, namespace_seed

_ROOT = namespace_seed("plan")


def ideal_hit_rates(
    plan: Plan,
    prompts: Prompts,
    block_tokens: int,
    pooled_capacity_tokens: int | None,
    asked: Iterable[tuple[Session, int]] | None = None,
) -> dict[str, float]:
    """Prompt tokens found / all prompt tokens: `infinite`, and with a capacity `pooled_lru`.

    With a real history an answer's blocks are found by the next turn, as far as the planned one stands for it; with the
    planned history they fill the pool and are never found. `asked` are the sessions and turns that it is about, where
    those are not all of the plan. Raises ValueError for a block or a capacity without tokens.
    """
    if block_tokens < 1:
        raise ValueError(f"block_tokens: {block_tokens} is not a whole number of at least 1")
    if pooled_capacity_tokens is not None and pooled_capacity_tokens < block_tokens:
        raise ValueError(f"pooled_capacity_tokens: {pooled_capacity_tokens} does not hold one block of {block_tokens}")
    caches: dict[str, _Pool] = {"infinite": _Pool(None)}
    if pooled_capacity_tokens is not None:
        caches["pooled_lru"] = _Pool(pooled_capacity_tokens // block_tokens)
    total = 0
    found = dict.fromkeys(caches, 0)
    unseen = count(-1, -1)  # no key is below 0
    for session, turn in in_order(plan) if asked is None else asked:
        pieces = prompts.pieces(session, turn)
        tokens = sum(piece.tokens for piece in pieces)
        answer = prompts.answer(session, turn)
        total += tokens
        keys = block_keys(prompts.tokens((*pieces, answer)), block_tokens, _ROOT)
        full = tokens // block_tokens
        left = keys[full:] if prompts.history == "real" else [next(unseen) for _ in keys[full:]]
        for name, cache in caches.items():
            found[name] += cache.ask(keys[:full], left, (tokens - 1) // block_tokens)
    return {name: blocks * block_tokens / total if total else 0.0 for name, blocks in found.items()}


class _Pool:
    """Block keys, those touched longest ago first; `room` of them, or any number. Prefix-closed: a request touches its
    last block first, so a parent is always younger than its children."""

    def __init__(self, room: int | None) -> None:
        self._room = room
        self._keys: OrderedDict[int, None] = OrderedDict()

    def ask(self, prompt: Sequence[int], answer: Sequence[int], most: int) -> int:
        """How many of the prompt's blocks are found, `most` at most. What is larger than the pool leaves nothing."""
        keys = self._keys
        if self._room is not None and len(prompt) + len(answer) > self._room:
            return 0
        found = 0
        for key in prompt[:most]:
            if key not in keys:
                break
            found += 1
        if self._room is None:
            keys.update(dict.fromkeys((*prompt, *answer)))
            return found
        for key in (*reversed(answer), *reversed(prompt)):
            keys[key] = None
            keys.move_to_end(key)
        while len(keys) > self._room:
            keys.popitem(last=False)
        return found
