"""Prompts: what a turn asks with, in each form and with each history."""

from __future__ import annotations

from itertools import groupby, pairwise, takewhile
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from loadgen.plans.plan import Piece, Plan, Session, Turn
from loadgen.plans.prompts import Form, History, Prompts
from loadgen.plans.wording import CODE_WORDS
from radix.chat import ChatTokenizer
from replica import tokenizer
from tests.loadgen.plans.made import plan_of, plans, prompts_of

few = settings(deadline=None, max_examples=40)
TOKENIZER = ChatTokenizer.load(tokenizer.directory())
GROWING = plan_of(
    Turn((Piece(0, 20, "system"), Piece(1, 30), Piece(2, 5)), 8),
    Turn((Piece(3, 10, "tool"),), 9, 1.5),
    Turn((Piece(4, 10),), 10),
    growing=True,
)


def every_turn(plan: Plan) -> list[tuple[Session, int]]:
    return [(session, turn) for session in plan.sessions for turn in range(len(session.turns))]


@few
@given(plans())
def test_text_encodes_to_the_ids_of_the_tokens_form(plan: Plan) -> None:
    as_text, as_tokens = prompts_of(plan, "text", "planned"), prompts_of(plan, "tokens", "planned")
    for session, turn in every_turn(plan):
        ids = as_tokens.body(session, turn, ())["prompt"]
        text = as_text.body(session, turn, ())["prompt"]
        assert TOKENIZER.encode(text, add_special_tokens=False) == ids
        assert len(ids) == as_text.prompt_tokens(session, turn)


@few
@given(plans())
def test_prompts_share_what_their_pieces_share_and_hardly_more(plan: Plan) -> None:
    prompts = prompts_of(plan, "tokens", "planned")
    asked = every_turn(plan)
    for left, right in pairwise(asked):
        pieces = list(zip(prompts.pieces(*left), prompts.pieces(*right), strict=False))
        alike = list(takewhile(lambda pair: pair[0].content == pair[1].content, pieces))
        equal = list(takewhile(lambda pair: pair[0].tokens == pair[1].tokens, alike))
        planned = sum(piece.tokens for piece, _ in equal)
        if len(equal) < len(alike):
            planned += min(piece.tokens for piece in alike[len(equal)])
        bodies = (prompts.body(*each, ())["prompt"] for each in (left, right))
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*bodies, strict=False)))
        assert planned <= shared <= planned + CODE_WORDS


@few
@given(plans(growing=True))
def test_a_growing_prompt_begins_with_the_whole_turn_before_it(plan: Plan) -> None:
    prompts = prompts_of(plan, "text", "planned")
    for session, turn in every_turn(plan):
        if turn:
            before = (*prompts.pieces(session, turn - 1), prompts.answer(session, turn - 1))
            assert prompts.pieces(session, turn) == (*before, *session.turns[turn].pieces)
            text = prompts.body(session, turn, ())["prompt"]
            assert text.startswith(prompts.body(session, turn - 1, ())["prompt"])


@few
@given(plans(growing=False))
def test_a_prompt_that_does_not_grow_is_its_own_pieces(plan: Plan) -> None:
    prompts = prompts_of(plan, "text", "real")
    for session, turn in every_turn(plan):
        assert prompts.pieces(session, turn) == session.turns[turn].pieces
        assert prompts.body(session, turn, ())["prompt"] == prompts.text(session.turns[turn].pieces)


@few
@given(plans())
def test_planned_answers_have_numbers_that_nothing_else_has(plan: Plan) -> None:
    prompts = prompts_of(plan, "text", "planned")
    answers = [prompts.answer(session, turn) for session, turn in every_turn(plan)]
    assert all(answer.content < 0 and answer.role == "assistant" for answer in answers)
    sessions = len(set(plan.sessions)) == len(plan.sessions)
    assert not sessions or len({answer.content for answer in answers}) == plan.requests
    assert [answer.tokens for answer in answers] == [
        session.turns[turn].output_tokens for session, turn in every_turn(plan)
    ]


@few
@given(plans())
def test_a_chat_says_the_same_in_messages(plan: Plan) -> None:
    chat, text = prompts_of(plan, "chat", "planned"), prompts_of(plan, "text", "planned")
    for session, turn in every_turn(plan):
        messages = chat.body(session, turn, ())["messages"]
        assert "".join(message["content"] for message in messages) == text.body(session, turn, ())["prompt"]
        roles = [role for role, _ in groupby(piece.role for piece in chat.pieces(session, turn))]
        assert [message["role"] for message in messages] == roles


def test_a_chat_with_its_planned_history_holds_every_role() -> None:
    messages = Prompts(GROWING, "chat", "planned").body(GROWING.sessions[0], 2, ())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert [message["content"].count(" ") for message in messages] == [20, 35, 8, 10, 9, 10]


def test_a_real_history_holds_the_answers_that_came() -> None:
    session = GROWING.sessions[0]
    messages = Prompts(GROWING, "chat", "real").body(session, 2, ["First.", ""])["messages"]
    assert [message["content"] for message in messages if message["role"] == "assistant"] == ["First.", ""]
    prompts = Prompts(GROWING, "text", "real")
    pieces = [prompts.text(turn.pieces) for turn in session.turns]
    assert prompts.body(session, 1, ["First."])["prompt"] == pieces[0] + "First." + pieces[1]
    with pytest.raises(ValueError, match=r"turn 2 .* needs 2 answers"):
        prompts.body(session, 2, ["First."])


@pytest.mark.parametrize(
    ("form", "history", "path", "fields"),
    [
        ("text", "planned", "/v1/completions", {"prompt", "max_tokens", "ignore_eos"}),
        ("tokens", "planned", "/v1/completions", {"prompt", "max_tokens", "ignore_eos"}),
        ("chat", "planned", "/v1/chat/completions", {"messages", "max_tokens", "ignore_eos"}),
        ("text", "real", "/v1/completions", {"prompt", "max_tokens"}),
        ("chat", "real", "/v1/chat/completions", {"messages", "max_tokens"}),
    ],
)
def test_a_body_holds_what_its_path_wants(form: Form, history: History, path: str, fields: set[str]) -> None:
    prompts = Prompts(GROWING, form, history)
    body = prompts.body(GROWING.sessions[0], 1, ["one"])
    assert prompts.path == path
    assert body.keys() == fields
    assert body["max_tokens"] == 9
    assert body.get("ignore_eos", True) is True


def test_a_session_that_was_copied_is_the_same_session() -> None:
    session = GROWING.sessions[0]
    copied = msgspec.convert(msgspec.to_builtins(session), Session)
    assert copied is not session
    prompts = Prompts(GROWING, "text", "planned")
    assert prompts.body(copied, 2, ()) == prompts.body(session, 2, ())


def test_bodies_are_not_changed_by_who_changes_one() -> None:
    prompts = Prompts(plan_of(Turn((Piece(0, 20),), 1)), "tokens", "planned")
    body = prompts.body(prompts.plan.sessions[0], 0, ())
    body["prompt"].clear()
    assert len(prompts.body(prompts.plan.sessions[0], 0, ())["prompt"]) == 20


FIXED = plan_of(Turn((Piece(0, 5),), 1), Turn((Piece(1, 5),), 1, due_s=2.0), growing=True)


@pytest.mark.parametrize(
    ("plan", "form", "history", "complaint"),
    [
        (GROWING, "words", "planned", "form: 'words' is none; it is text, tokens or chat"),
        (GROWING, "text", "none", "history: 'none' is none; it is planned or real"),
        (GROWING, "tokens", "real", "history: answers come as text"),
        (FIXED, "text", "real", "history: a turn at a fixed time"),
    ],
)
def test_a_form_or_history_that_cannot_be_had_is_refused(plan: Plan, form: Any, history: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Prompts(plan, form, history)
