"""The simulated router's beliefs: reports, predictions, and how one ends the other."""

from __future__ import annotations

from random import Random

from loadgen.traces import BLOCK_TOKENS
from loadgen.virtual.clock import VirtualClock
from loadgen.virtual.prompts import Ask, asks
from loadgen.virtual.router import Seat, VirtualRouter
from radix.events import BlockRemoved, BlockStored, EventBatch, pack_keys
from scoring.policies import make_policy
from tests.loadgen.virtual.asks import request

PROMPT = 2048


def router_of(*, hints: bool) -> tuple[VirtualRouter, Seat]:
    router = VirtualRouter(make_policy("kv", Random(1)), VirtualClock(), BLOCK_TOKENS, hints=hints)
    return router, router.join("one", 1_000_000)


def uncached(router: VirtualRouter, ask: Ask) -> int:
    """What the router thinks is to be computed of the next such request."""
    seat, booking = router.place(ask)
    assert seat.load.waiting == 1
    booking.release()
    return booking.uncached_tokens


def test_a_prompt_just_placed_is_believed_there_until_the_replica_reports_its_eviction() -> None:
    ask = asks([request(0, PROMPT)], None)[0]
    router, seat = router_of(hints=True)
    assert uncached(router, ask) == PROMPT
    assert uncached(router, ask) == 1
    packed = pack_keys(ask.keys)
    seat.feed.apply(EventBatch("one", 0, 0, (BlockStored(None, packed), BlockRemoved(packed[8:]))))
    assert uncached(router, ask) == PROMPT - BLOCK_TOKENS


def test_without_hints_only_reports_count() -> None:
    ask = asks([request(0, PROMPT)], None)[0]
    router, seat = router_of(hints=False)
    assert [uncached(router, ask), uncached(router, ask)] == [PROMPT] * 2
    seat.feed.apply(EventBatch("one", 0, 0, (BlockStored(None, pack_keys(ask.keys[:3])),)))
    assert uncached(router, ask) == PROMPT - 3 * BLOCK_TOKENS


def test_a_replica_that_left_is_believed_to_hold_nothing_when_its_like_returns() -> None:
    ask = asks([request(0, PROMPT)], None)[0]
    router, seat = router_of(hints=True)
    uncached(router, ask)
    router.leave(seat)
    router.join("one", 1_000_000)
    assert uncached(router, ask) == PROMPT
