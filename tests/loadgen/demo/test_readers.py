"""The demo's readers: the same for every policy, of the sizes that are said, in conversations that hold what was
answered."""

from __future__ import annotations

import pytest

from loadgen.demo.readers import chats, readers
from loadgen.plans.verify import verify_chat
from radix.chat import ChatTokenizer
from replica import tokenizer


def test_a_seed_gives_the_same_readers_and_the_same_prompts() -> None:
    one, other = readers(seed=1), readers(seed=1)
    assert one == other != readers(seed=2)
    session = one.sessions[0]
    assert chats(one).body(session, 1, ["Yes."]) == chats(other).body(session, 1, ["Yes."])


def test_readers_are_as_many_and_as_thorough_as_the_caption_says() -> None:
    plan = readers(seed=4, duration_s=500.0, rate=2.0)
    assert len(plan.sessions) == pytest.approx(1000, abs=5 * 1000**0.5)  # Poisson: five standard deviations
    for session in plan.sessions:
        assert 0 <= session.start_s < 500
        assert 0 <= session.group < 60
        assert 2000 <= session.turns[0].pieces[1].tokens <= 8000
        assert 3 <= len(session.turns) <= 6
        assert all(24 <= turn.output_tokens <= 64 for turn in session.turns)


def test_prompts_are_as_long_as_planned_for_the_replicas_tokenizer() -> None:
    verified = verify_chat(ChatTokenizer.load(tokenizer.directory()), readers(seed=1), sample=6)
    assert verified.tokens > 6 * 2000


def test_each_prompt_extends_the_one_before_by_the_answer_received() -> None:
    plan = readers(seed=1)
    session = max(plan.sessions, key=lambda each: len(each.turns))
    said = chats(plan)
    before = said.body(session, 0, [])["messages"]
    assert [message["role"] for message in before] == ["system", "user"]
    answers: list[str] = []
    for turn in range(1, len(session.turns)):
        answers.append(f"answer {turn}")
        after = said.body(session, turn, answers)["messages"]
        assert after[: len(before)] == before
        assert after[-2] == {"role": "assistant", "content": f"answer {turn}"}
        assert [message["role"] for message in after[-2:]] == ["assistant", "user"]
        before = after


def test_readers_of_one_document_share_their_prompt_up_to_the_question() -> None:
    plan = readers(seed=1)
    said = chats(plan)
    first = next(session for session in plan.sessions if session.group == 0)
    second = next(session for session in reversed(plan.sessions) if session.group == 0)
    document = said.text((first.turns[0].pieces[1],))
    system, asked = zip(*(said.body(session, 0, [])["messages"] for session in (first, second)), strict=True)
    assert system[0] == system[1]
    assert all(message["content"].startswith(document) for message in asked)
    assert asked[0] != asked[1]


def test_no_reader_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no session starts within 1 s"):
        readers(seed=1, duration_s=1.0, rate=1e-6)
