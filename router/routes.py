"""How a request finds its replica: an inference request by its prompt, any other by load.

Owns the resolution of the model and the choice of candidates. Must never touch a connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from router.decide import Decider, Decision
from router.errors import model_not_found, unavailable
from router.fleet import Fleet, Replica
from router.models import Pool
from router.prompt import PromptKeys
from scoring.decision import Query, Receipt
from scoring.ledger import Booking
from scoring.policies import Policy

NO_PROMPT = Query(0, 0)
AT_ONCE_S = 1e-3  # a first attempt comes some microseconds after its query was made: no reason to make it anew
NO_REPLICA = "No replica can take the request now. Start one, or see GET /fleet on the control port for what is wrong."


def pool_of(fleet: Fleet, model: str) -> Pool:
    """The replicas of `model`. Raises Refusal: 404 when nobody serves it, 503 when nobody is there."""
    pool = fleet.table.resolve(model)
    if pool is None:
        raise model_not_found(model) if len(fleet) else unavailable(NO_REPLICA)
    return pool


def candidates_of(pool: Pool, tried: frozenset[Replica]) -> tuple[tuple[Replica, ...], tuple[str, ...]]:
    """Those that are up and not tried yet, with their names. Raises Refusal when there are none."""
    if not tried and pool.up:
        return pool.up, pool.names
    left = tuple(replica for replica in pool.up if replica not in tried)
    if not left:
        raise unavailable(NO_REPLICA if not tried else "Every replica that could take the request failed.")
    return left, tuple(replica.name for replica in left)


class InferenceRoute(msgspec.Struct):
    """By the prompt: the policy weighs what each candidate holds of it and how busy it is."""

    fleet: Fleet
    decider: Decider
    prompt: PromptKeys
    query: Query
    request_id: str
    model: str
    path: str
    clock: Callable[[], float]
    repeatable: bool = True  # generating again elsewhere does no harm

    def choose(self, tried: frozenset[Replica]) -> Decision:
        candidates, names = candidates_of(pool_of(self.fleet, self.model), tried)
        query, now = self.query, self.clock()
        if now - query.now > AT_ONCE_S:  # another attempt: the first may have taken long to fail
            query = msgspec.structs.replace(query, now=now)
        return self.decider.decide(candidates, names, self.prompt, query, self.request_id, self.model, self.path, now)

    def has_other(self, tried: frozenset[Replica]) -> bool:
        return _has_other(self.fleet.table.resolve(self.model), tried)


@dataclass(frozen=True, slots=True)
class PlainPlacement:
    replica: Replica
    booking: Booking
    receipt: Receipt | None = None

    def unplaced(self) -> None:
        """Such a request leaves no blocks anyway."""


class PlainRoute:
    """By load alone: any request that is not inference. `model` narrows the choice when the body names one."""

    def __init__(self, fleet: Fleet, by_load: Policy, model: str | None, *, repeatable: bool) -> None:
        self._fleet = fleet
        self._by_load = by_load
        self._model = model
        self.repeatable = repeatable

    def choose(self, tried: frozenset[Replica]) -> PlainPlacement:
        pool = self._fleet.table.everyone if self._model is None else pool_of(self._fleet, self._model)
        candidates, _ = candidates_of(pool, tried)
        choice = self._by_load.choose(NO_PROMPT, [replica.load for replica in candidates], [0] * len(candidates))
        chosen = candidates[choice.index]
        return PlainPlacement(chosen, chosen.load.book(0, 0))

    def has_other(self, tried: frozenset[Replica]) -> bool:
        table = self._fleet.table
        return _has_other(table.everyone if self._model is None else table.resolve(self._model), tried)


def _has_other(pool: Pool | None, tried: frozenset[Replica]) -> bool:
    return pool is not None and any(replica not in tried for replica in pool.up)
