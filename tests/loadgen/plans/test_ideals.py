"""Ideal hit rates: what a replica's own block pool finds when it is as large, and nothing routing could beat."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.plans.catalogue import make_plan
from loadgen.plans.ideals import ideal_hit_rates
from loadgen.plans.order import CLOSED_TURN_S, in_order
from loadgen.plans.plan import Piece, Plan, Session, Turn
from loadgen.plans.prompts import History
from radix.blocks import pack_tokens
from replica.blocks import BlockPool, Namespace
from tests.loadgen.plans.made import plan_of, plans, prompts_of

NAMESPACE = Namespace("plan")
FIRST_OUTPUT = 10**6  # ids that no word has
ONE_MORE = 10**7


def pool_hit_rate(plan: Plan, history: History, block_tokens: int, blocks: int) -> float:
    """By the replica's block pool, each request alone, its answer's tokens stored behind its prompt.

    A replica computes a prompt's last token even if all of it is resident, and needs a block for that meanwhile; with
    one token more asked for, it needs none.
    """
    prompts = prompts_of(plan)
    pool = BlockPool(blocks, block_tokens)
    found = total = 0
    for number, (session, turn) in enumerate(in_order(plan)):
        prompt = prompts.tokens(prompts.pieces(session, turn))
        answer = prompts.tokens([prompts.answer(session, turn)])
        if history == "planned":
            answer = [FIRST_OUTPUT + number] * len(answer)
        total += len(prompt)
        table = pool.open(NAMESPACE, pack_tokens([*prompt, *answer, ONE_MORE]))
        found += min(table.stored, (len(prompt) - 1) // block_tokens) * block_tokens
        stored = (len(prompt) + len(answer)) // block_tokens * block_tokens
        assert pool.grow(table, stored)
        pool.store(table, pack_tokens([*prompt, *answer]), stored)
        pool.release(table)
        pool.drain()
    return found / total


def largest(plan: Plan, block_tokens: int) -> int:
    """Blocks of the largest request with its answer."""
    prompts = prompts_of(plan)
    return max(
        (prompts.prompt_tokens(session, turn) + session.turns[turn].output_tokens) // block_tokens
        for session, turn in in_order(plan)
    )


@settings(deadline=None, max_examples=60)
@given(plans(), st.sampled_from(["planned", "real"]), st.integers(1, 16), st.integers(1, 40))
def test_the_pool_finds_what_a_replica_s_pool_of_its_size_finds(
    plan: Plan, history: History, block_tokens: int, more: int
) -> None:
    blocks = largest(plan, block_tokens) + more
    ideals = ideal_hit_rates(plan, prompts_of(plan, "text", history), block_tokens, blocks * block_tokens)
    assert ideals["pooled_lru"] == pytest.approx(pool_hit_rate(plan, history, block_tokens, blocks))
    assert ideals["infinite"] == pytest.approx(pool_hit_rate(plan, history, block_tokens, 4000))


def test_a_request_larger_than_the_pool_finds_and_leaves_nothing() -> None:
    plan = plan_of(
        Turn((Piece(0, 32),), 1), Turn((Piece(0, 80),), 1), Turn((Piece(0, 80),), 1), Turn((Piece(0, 33),), 1)
    )
    assert ideal_hit_rates(plan, prompts_of(plan), 16, 64)["pooled_lru"] == 32 / 225
    assert ideal_hit_rates(plan, prompts_of(plan), 16, 96)["pooled_lru"] == (32 + 64 + 32) / 225


def test_only_full_blocks_are_found_and_never_the_last_token() -> None:
    turn = Turn((Piece(0, 40),), 1)
    plan = plan_of(turn, turn)
    for block_tokens, found in ((16, 32), (8, 32), (39, 39), (40, 0), (64, 0)):
        assert ideal_hit_rates(plan, prompts_of(plan), block_tokens, None) == {"infinite": found / 80}


def test_an_answer_is_found_again_where_the_history_is_real() -> None:
    plan = plan_of(Turn((Piece(0, 16),), 16), Turn((Piece(1, 16),), 16), growing=True)
    assert ideal_hit_rates(plan, prompts_of(plan, "text", "planned"), 16, None)["infinite"] == 16 / 64
    assert ideal_hit_rates(plan, prompts_of(plan, "text", "real"), 16, None)["infinite"] == 32 / 64


def test_ideals_can_be_of_some_requests_only() -> None:
    plan = plan_of(Turn((Piece(0, 33),), 1), Turn((Piece(0, 33),), 1), Turn((Piece(1, 33),), 1))
    (session,) = plan.sessions
    for asked, found in (([0, 1], 32 / 66), ([1, 0, 0], 64 / 99), ([0, 2], 0.0), ([], 0.0)):
        these = [(session, turn) for turn in asked]
        assert ideal_hit_rates(plan, prompts_of(plan), 16, None, these)["infinite"] == found


def test_a_small_pool_forgets_what_a_large_one_keeps() -> None:
    plan = make_plan("shared-prefix", arrivals="constant:20", duration_s=10.0, settings={"prefix_tokens": 512})
    rates = [ideal_hit_rates(plan, prompts_of(plan), 16, size) for size in (1024, 8192, 10**6)]
    assert 0 < rates[0]["pooled_lru"] < rates[1]["pooled_lru"] < rates[2]["pooled_lru"]
    assert rates[2]["pooled_lru"] == rates[2]["infinite"]


def test_a_block_and_a_capacity_hold_tokens() -> None:
    plan = plan_of(Turn((Piece(0, 40),), 1))
    with pytest.raises(ValueError, match="block_tokens: 0 is not"):
        ideal_hit_rates(plan, prompts_of(plan), 0, None)
    with pytest.raises(ValueError, match="pooled_capacity_tokens: 15 does not hold one block of 16"):
        ideal_hit_rates(plan, prompts_of(plan), 16, 15)


def turn(number: int, think_s: float = 0.0, due_s: float | None = None) -> Turn:
    return Turn((Piece(number, 1),), 1, think_s, due_s)


def order(plan: Plan) -> list[int]:
    return [session.turns[number].pieces[0].content for session, number in in_order(plan)]


def test_causal_turns_are_ordered_by_start_and_pauses() -> None:
    sessions = (Session(0.0, (turn(0), turn(1, 2.0), turn(2, 2.0))), Session(1.0, (turn(3), turn(4, 2.0))))
    assert order(Plan("made", 1, {}, 9.0, sessions, True)) == [0, 3, 1, 4, 2]
    assert order(Plan("made", 1, {}, 3.0, sessions, True)) == [0, 3, 1]


def test_turns_at_fixed_times_are_ordered_by_those() -> None:
    sessions = (Session(0.0, (turn(0), turn(1, due_s=8.0))), Session(1.0, (turn(2), turn(3, due_s=3.0))))
    assert order(Plan("made", 1, {}, 9.0, sessions, True)) == [0, 2, 3, 1]


def test_a_closed_loop_s_sessions_take_the_place_that_is_free_first() -> None:
    long = Session(0.0, (turn(0), turn(1, 5.0)))
    sessions = (long, Session(0.0, (turn(2), turn(3))), Session(0.0, (turn(4),)), Session(0.0, (turn(5),)))
    assert CLOSED_TURN_S == 1.0
    assert order(Plan("made", 1, {}, 0.5, sessions, True, concurrency=2)) == [0, 2, 3, 4, 5, 1]
