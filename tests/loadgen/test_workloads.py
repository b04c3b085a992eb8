"""The schedule: the same for the same seed, and of the shape that its parameters promise."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from loadgen.workloads import RagParameters, conversation, rag, zipf_weights
from replica import tokenizer

CORPUS = tokenizer.corpus()

parameters = st.builds(
    RagParameters,
    duration_s=st.floats(0.5, 30),
    sessions_per_s=st.floats(0.1, 20),
    documents=st.integers(1, 12),
    zipf=st.floats(0, 2),
    document_tokens=st.tuples(st.integers(100, 300), st.integers(300, 900)),
    turns=st.tuples(st.integers(1, 3), st.integers(3, 6)),
    think_s=st.floats(0, 5),
    answer_tokens=st.tuples(st.integers(1, 8), st.integers(8, 64)),
)


@settings(max_examples=30, deadline=None)
@given(parameters, st.integers())
def test_a_seed_gives_one_schedule_within_its_bounds(asked: RagParameters, seed: int) -> None:
    workload = rag(asked, CORPUS, seed)
    assert msgspec.json.encode(workload) == msgspec.json.encode(rag(asked, CORPUS, seed))
    starts = [session.start_s for session in workload.sessions]
    assert starts == sorted(starts)
    assert all(0 <= start < asked.duration_s for start in starts)
    for session in workload.sessions:
        assert 0 <= session.document < asked.documents
        assert asked.turns[0] <= len(session.turns) <= asked.turns[1]
        assert session.turns[0].think_s == 0
        assert all(turn.think_s >= 0 for turn in session.turns)
        assert all(asked.answer_tokens[0] <= turn.max_tokens <= asked.answer_tokens[1] for turn in session.turns)


def test_another_seed_gives_other_documents_and_other_times() -> None:
    one, other = rag(RagParameters(), CORPUS, 1), rag(RagParameters(), CORPUS, 2)
    assert one.documents != other.documents
    assert one.sessions != other.sessions


def test_the_corpus_changes_no_time() -> None:
    """So that the figures of a seed stay comparable when the bundled text is edited."""
    asked = RagParameters(documents=5)
    one, other = rag(asked, CORPUS, 1), rag(asked, "Quite another text it is. It has two sentences only.", 1)
    assert one.documents != other.documents
    for mine, yours in zip(one.sessions, other.sessions, strict=True):
        assert (mine.start_s, mine.document) == (yours.start_s, yours.document)
        assert [(turn.think_s, turn.max_tokens) for turn in mine.turns] == [
            (turn.think_s, turn.max_tokens) for turn in yours.turns
        ]


def test_documents_have_the_size_they_claim_and_differ_from_their_first_sentence_on() -> None:
    workload = rag(RagParameters(documents=24), CORPUS, 7)
    count = Tokenizer.from_file(str(tokenizer.directory() / "tokenizer.json"))
    for document in workload.documents:
        assert len(count.encode(document.text).ids) == pytest.approx(document.tokens, rel=0.15)
        assert 1800 <= document.tokens <= 8000
    sizes = [document.tokens for document in workload.documents]
    assert max(sizes) > 2 * min(sizes)
    assert len({document.text.split(". ")[0] for document in workload.documents}) == 24


def test_a_tokenizer_given_to_it_counts_exactly_enough() -> None:
    encoder = Tokenizer.from_file(str(tokenizer.directory() / "tokenizer.json"))
    workload = rag(RagParameters(documents=6), CORPUS, 7, lambda text: len(encoder.encode(text).ids))
    for document in workload.documents:
        assert len(encoder.encode(document.text).ids) == pytest.approx(document.tokens, rel=0.03)


def test_popularity_follows_zipf() -> None:
    asked = RagParameters(duration_s=1000, sessions_per_s=10, documents=10, document_tokens=(50, 60), zipf=1.0)
    workload = rag(asked, CORPUS, 3)
    seen = Counter(session.document for session in workload.sessions)
    for document, weight in enumerate(zipf_weights(10, 1.0)):
        # Of ~10,000 draws each share lies within five standard deviations of its weight.
        expected = weight * len(workload.sessions)
        assert seen[document] == pytest.approx(expected, abs=5 * expected**0.5)


def test_sessions_arrive_as_a_poisson_process() -> None:
    asked = RagParameters(duration_s=1000, sessions_per_s=4, documents=2, document_tokens=(50, 60))
    starts = [session.start_s for session in rag(asked, CORPUS, 5).sessions]
    gaps = [after - before for before, after in pairwise(starts)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.25, rel=0.1)
    assert deviation == pytest.approx(mean, rel=0.1)  # exponential gaps


def test_each_prompt_extends_the_one_before_by_the_answer_received() -> None:
    workload = rag(RagParameters(documents=3, turns=(4, 4)), CORPUS, 1)
    session = workload.sessions[0]
    before = conversation(workload, session, [])
    assert [message["role"] for message in before] == ["system", "user"]
    assert workload.documents[session.document].text in before[1]["content"]
    answers: list[str] = []
    for index in range(1, 4):
        answers.append(f"answer {index}")
        after = conversation(workload, session, answers)
        assert after[: len(before)] == before
        assert after[-2:] == [
            {"role": "assistant", "content": f"answer {index}"},
            {"role": "user", "content": session.turns[index].question},
        ]
        before = after


def test_sessions_on_one_document_share_their_prompt_up_to_the_question() -> None:
    workload = rag(RagParameters(documents=1), CORPUS, 1)
    first, second = (conversation(workload, session, []) for session in workload.sessions[:2])
    assert first[0] == second[0]
    shared = first[1]["content"].partition("Question:")[0]
    assert second[1]["content"].startswith(shared)
    assert first[1] != second[1]


@pytest.mark.parametrize(
    "asked",
    [
        RagParameters(duration_s=0),
        RagParameters(sessions_per_s=0),
        RagParameters(documents=0),
        RagParameters(turns=(3, 2)),
        RagParameters(answer_tokens=(0, 5)),
    ],
)
def test_impossible_parameters_are_refused(asked: RagParameters) -> None:
    with pytest.raises(ValueError, match="must be"):
        rag(asked, CORPUS, 1)


def test_a_corpus_without_sentences_is_refused() -> None:
    with pytest.raises(ValueError, match="no sentences"):
        rag(RagParameters(), "  ", 1)
