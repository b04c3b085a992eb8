"""Workloads: what each asks, and that its seeds, streams and parameters do what they say."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from statistics import mean
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.plans.catalogue import CLOSED_SESSIONS_PER_S, DURATION_S, WORKLOADS, make_again, make_plan
from loadgen.plans.plan import Piece, Plan
from tests.loadgen.plans.made import prompts_of

DRAWN = [name for name in WORKLOADS if name != "trace"]
GROWING = [name for name in DRAWN if WORKLOADS[name].growing]


def made(workload: str, seed: int = 1, arrivals: str = "poisson:4", duration_s: float = 20.0, **given: Any) -> Plan:
    return make_plan(workload, seed=seed, arrivals=arrivals, duration_s=duration_s, settings=given)


def starts(plan: Plan) -> list[float]:
    return [session.start_s for session in plan.sessions]


def own_pieces(plan: Plan) -> list[Piece]:
    """Pieces whose content only one turn asks with."""
    every = [piece for session in plan.sessions for turn in session.turns for piece in turn.pieces]
    times = Counter(piece.content for piece in every)
    return [piece for piece in every if times[piece.content] == 1]


@pytest.mark.parametrize("workload", DRAWN)
def test_equal_options_give_equal_plans_and_another_seed_another(workload: str) -> None:
    assert made(workload) == made(workload) != made(workload, seed=2)


@pytest.mark.parametrize("workload", DRAWN)
def test_a_plan_s_parameters_survive_json_and_make_it_again(workload: str) -> None:
    plan = make_plan(workload, seed=3, sessions=9, settings={"output_tokens": "5-9"})
    parameters = msgspec.json.decode(msgspec.json.encode(plan.parameters))
    assert make_again(plan.workload, plan.seed, parameters) == plan


@pytest.mark.parametrize("workload", DRAWN)
def test_sessions_come_by_rising_start_within_the_run(workload: str) -> None:
    plan = made(workload)
    assert plan.duration_s == 20.0
    assert len(plan.sessions) > 40
    assert all(before.start_s <= after.start_s < 20.0 for before, after in pairwise(plan.sessions))
    assert plan.growing == (workload in GROWING)
    assert plan.concurrency is None


@pytest.mark.parametrize("workload", [name for name in DRAWN if name != "universal"])
def test_another_popularity_changes_no_time_and_no_length(workload: str) -> None:
    plan, even = made(workload), made(workload, zipf=0.0)
    assert starts(plan) == starts(even)
    assert [session.group for session in plan.sessions] != [session.group for session in even.sessions]
    for session, other in zip(plan.sessions, even.sessions, strict=True):
        assert [turn.output_tokens for turn in session.turns] == [turn.output_tokens for turn in other.turns]
        assert [turn.think_s for turn in session.turns] == [turn.think_s for turn in other.turns]
        assert [turn.pieces[-1].tokens for turn in session.turns] == [turn.pieces[-1].tokens for turn in other.turns]


@pytest.mark.parametrize("workload", DRAWN)
def test_other_lengths_change_no_time_and_no_popularity(workload: str) -> None:
    plan, longer = made(workload), made(workload, output_tokens="200-300")
    assert starts(plan) == starts(longer)
    assert [session.group for session in plan.sessions] == [session.group for session in longer.sessions]
    assert all(200 <= turn.output_tokens <= 300 for session in longer.sessions for turn in session.turns)


@pytest.mark.parametrize("workload", DRAWN)
def test_all_workloads_have_the_same_starts_under_the_same_arrivals(workload: str) -> None:
    assert starts(made(workload)) == starts(made("universal"))


def test_popular_prefixes_are_as_popular_as_zipf_says() -> None:
    plan = made("shared-prefix", arrivals="constant:500", prefixes=10, zipf=1.0)
    asked = Counter(session.group for session in plan.sessions)
    harmonic = sum(1 / rank for rank in range(1, 11))
    for rank in range(10):
        assert asked[rank] / len(plan.sessions) == pytest.approx(1 / (rank + 1) / harmonic, rel=0.15)


def test_shared_prefixes_are_shared_by_their_group_and_nothing_else_is() -> None:
    plan = made("shared-prefix", prefix_tokens=100, suffix_tokens="5-7")
    for session in plan.sessions:
        prefix, suffix = session.turns[0].pieces
        assert (prefix.content, prefix.tokens, prefix.role) == (session.group, 100, "system")
        assert 5 <= suffix.tokens <= 7
    assert len(own_pieces(plan)) >= len(plan.sessions)


def test_universal_prompts_share_their_first_piece_alone() -> None:
    plan = made("universal", shared_tokens=64, private_tokens="10-20")
    firsts = {session.turns[0].pieces[0] for session in plan.sessions}
    assert firsts == {Piece(0, 64, "system")}
    assert len({session.turns[0].pieces[1].content for session in plan.sessions} | {0}) == len(plan.sessions) + 1


def test_readers_of_one_document_share_it_whole() -> None:
    plan = made("rag", arrivals="constant:10", documents=5, document_tokens="100-900")
    first = {session.group: session.turns[0].pieces[:2] for session in plan.sessions}
    assert len({system for system, _ in first.values()}) == 1
    assert len({document.content for _, document in first.values()}) == len(first) == 5
    assert all(session.turns[0].pieces[:2] == first[session.group] for session in plan.sessions)
    assert all(len(turn.pieces) == 1 for session in plan.sessions for turn in session.turns[1:])


def test_a_chat_begins_with_its_system_prompt_and_goes_on_with_questions() -> None:
    plan = made("chat", systems=3, system_tokens=77, turns="2-5")
    for session in plan.sessions:
        system, question = session.turns[0].pieces
        assert (system, question.role) == (Piece(session.group, 77, "system"), "user")
        assert 2 <= len(session.turns) <= 5
        assert all([piece.role for piece in turn.pieces] == ["user"] for turn in session.turns[1:])


@pytest.mark.parametrize("role", ["tool", "user"])
def test_agents_append_what_their_tools_gave(role: str) -> None:
    plan = made("agents", tool_role=role)
    for session in plan.sessions:
        assert [piece.role for piece in session.turns[0].pieces] == ["system", "user"]
        assert all([piece.role for piece in turn.pieces] == [role] for turn in session.turns[1:])
        messages = prompts_of(plan, "chat").body(session, 2, ())["messages"]
        assert [message["role"] for message in messages][:5] == ["system", "user", "assistant", role, "assistant"]


@pytest.mark.parametrize("workload", GROWING)
def test_pauses_have_the_mean_that_was_asked_for(workload: str) -> None:
    plan = made(workload, arrivals="constant:50", think_s=2.0)
    later = [turn.think_s for session in plan.sessions for turn in session.turns[1:]]
    assert mean(later) == pytest.approx(2.0, rel=0.1)
    assert all(session.turns[0].think_s == 0 for session in plan.sessions)
    assert all(turn.due_s is None for session in plan.sessions for turn in session.turns)


@pytest.mark.parametrize("workload", GROWING)
def test_turns_at_fixed_times_are_due_when_their_pauses_add_up_within_the_run(workload: str) -> None:
    causal, fixed = made(workload), made(workload, causal=False)
    cut = 0
    for session, other in zip(causal.sessions, fixed.sessions, strict=True):
        due = [
            session.start_s + sum(turn.think_s for turn in session.turns[: n + 1]) for n in range(len(session.turns))
        ]
        within = [moment for moment in due if moment < fixed.duration_s]
        assert [turn.due_s for turn in other.turns] == pytest.approx(within)
        cut += len(due) - len(within)
    assert cut > 0


@pytest.mark.parametrize("workload", DRAWN)
def test_a_closed_loop_has_places_and_sessions_enough(workload: str) -> None:
    plan = make_plan(workload, arrivals="closed:3", duration_s=10.0)
    assert plan.concurrency == 3
    assert len(plan.sessions) == 3 * 10 * CLOSED_SESSIONS_PER_S
    assert set(starts(plan)) == {0.0}
    assert len(make_plan(workload, arrivals="closed:3", sessions=5).sessions) == 5


@pytest.mark.parametrize("workload", DRAWN)
def test_no_more_sessions_are_made_than_asked_for(workload: str) -> None:
    plan = make_plan(workload, sessions=3)
    assert plan.sessions == make_plan(workload).sessions[:3]
    assert plan.duration_s == DURATION_S


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(DRAWN), st.integers(0, 50), st.sampled_from(["poisson:3", "gamma:2:3", "ramp:0-4", "closed:2"]))
def test_contents_and_pieces_are_numbers_that_prompts_take(workload: str, seed: int, arrivals: str) -> None:
    plan = make_plan(workload, seed=seed, arrivals=arrivals, duration_s=60.0, sessions=20)
    lengths: dict[int, set[int]] = {}
    for session in plan.sessions:
        assert session.turns
        for turn in session.turns:
            assert turn.output_tokens >= 1
            for piece in turn.pieces:
                assert piece.content >= 0
                lengths.setdefault(piece.content, set()).add(piece.tokens)
    assert all(len(each) == 1 and min(each) >= 1 for each in lengths.values())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"workload": "poems"},
            "workload: 'poems' is none; there are trace, shared-prefix, chat, rag, agents, universal",
        ),
        ({"workload": "chat", "duration_s": 0.0}, "duration_s: 0 is not a number of seconds above 0"),
        ({"workload": "chat", "duration_s": float("inf")}, "duration_s: inf is not a number"),
        ({"workload": "chat", "sessions": 0}, "sessions: 0 is not a whole number of at least 1"),
        ({"workload": "chat", "arrivals": "trace"}, "arrivals: only the workload trace has times of its own"),
        ({"workload": "chat", "arrivals": "soon"}, "arrivals: 'soon' is none of poisson:RATE"),
        ({"workload": "chat", "arrivals": "poisson:1e-9"}, "arrivals: no session starts within 30 s; raise the rate"),
        ({"workload": "chat", "settings": {"turns": "x"}}, "turns: 'x' is not a whole number"),
        ({"workload": "chat", "arrivals": "closed:2", "settings": {"causal": "false"}}, "causal: in a closed loop"),
    ],
)
def test_options_that_make_no_plan_are_refused_by_name(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}"):
        make_plan(**options)
