"""Seeded workloads: who asks what, about which document, and when. A seed and its parameters give one schedule.

Owns the schedule as plain data and the conversation it prescribes. Must never look at a clock or a server, so that
every policy is asked exactly the same.
"""

from __future__ import annotations

import random
import re
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypedDict

import msgspec

SYSTEM = (
    "You are the reading assistant of a small research library. Answer from the document that the reader has opened, "
    "in a few plain sentences, and say so when the document does not hold the answer."
)

QUESTIONS = (
    "What does the document say about {topic}?",
    "Where does {topic} come up first, and in what context?",
    "Which reasons are given for {topic}?",
    "Summarise the passage about {topic} in three sentences.",
    "Is there anything in the text that speaks against {topic}?",
    "How would you explain {topic} to somebody new, using this document only?",
    "Which other parts of the document depend on {topic}?",
    "What is left open about {topic}?",
)

CHARS_PER_TOKEN = 4.4
PARAGRAPH_SENTENCES = 6


class Message(TypedDict):
    role: str
    content: str


class RagParameters(msgspec.Struct, frozen=True):
    """Sizes in tokens, times in seconds; pairs are inclusive bounds of a uniform draw.

    `sessions_per_s` is the rate of the Poisson process that starts sessions during the first `duration_s` seconds;
    `zipf` the exponent of the documents' popularity; `think_s` the mean of the exponential pause before each follow-up.
    """

    duration_s: float = 20.0
    sessions_per_s: float = 1.7
    documents: int = 60
    zipf: float = 0.8
    document_tokens: tuple[int, int] = (2000, 8000)
    turns: tuple[int, int] = (3, 6)
    think_s: float = 3.0
    answer_tokens: tuple[int, int] = (24, 64)


class Document(msgspec.Struct, frozen=True):
    text: str
    tokens: int


class Turn(msgspec.Struct, frozen=True):
    """A question, due `think_s` after the answer before it (after the session's start for the first)."""

    question: str
    think_s: float
    max_tokens: int


class Session(msgspec.Struct, frozen=True):
    """One reader with one document (an index into what the schedule has of them) open."""

    start_s: float
    document: int
    turns: tuple[Turn, ...]


class Workload(msgspec.Struct, frozen=True):
    """Documents by falling popularity, and sessions by rising start. A Schedule for the client: its turns are chats."""

    seed: int
    parameters: RagParameters
    system: str
    documents: tuple[Document, ...]
    sessions: tuple[Session, ...]

    @property
    def path(self) -> str:
        return "/v1/chat/completions"

    @property
    def duration_s(self) -> float:
        return self.parameters.duration_s

    def ask(self, session: Session, answers: Sequence[str]) -> dict[str, Any]:
        """The turn after `answers`."""
        messages = conversation(self, session, answers)
        return {"messages": messages, "max_tokens": session.turns[len(answers)].max_tokens}


def estimate_tokens(text: str) -> int:
    """A guess for English prose where no tokenizer is at hand."""
    return round(len(text) / CHARS_PER_TOKEN)


def rag(
    parameters: RagParameters, corpus: str, seed: int, count_tokens: Callable[[str], int] = estimate_tokens
) -> Workload:
    """Readers of a shared library ask several questions each about one document.

    `corpus` is any prose; its sentences, shuffled, become the documents. Raises ValueError for a corpus without
    sentences or parameters that make no schedule.
    """
    _check(parameters)
    documents = _documents(parameters, corpus, random.Random(f"documents {seed}"), count_tokens)
    sessions = _sessions(parameters, documents, seed)
    return Workload(seed, parameters, SYSTEM, documents, sessions)


def conversation(workload: Workload, session: Session, answers: Sequence[str]) -> list[Message]:
    """The messages of the turn that follows `answers`, which are the answers really received so far, in order."""
    document = workload.documents[session.document]
    first = f"Document:\n\n{document.text}\n\nQuestion: {session.turns[0].question}"
    messages: list[Message] = [
        {"role": "system", "content": workload.system},
        {"role": "user", "content": first},
    ]
    for answer, turn in zip(answers, session.turns[1:], strict=False):
        messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": turn.question})
    return messages


def zipf_weights(count: int, exponent: float) -> list[float]:
    """Popularity of ranks 1..count, summing to 1: weight of rank k is proportional to k^-exponent."""
    weights = [rank**-exponent for rank in range(1, count + 1)]
    total = sum(weights)
    return [weight / total for weight in weights]


def _check(parameters: RagParameters) -> None:
    if parameters.duration_s <= 0 or parameters.sessions_per_s <= 0:
        raise ValueError("duration and session rate must be positive")
    if parameters.documents < 1 or parameters.think_s < 0:
        raise ValueError("there must be at least one document, and think times cannot be negative")
    for name in ("document_tokens", "turns", "answer_tokens"):
        low, high = getattr(parameters, name)
        if not 1 <= low <= high:
            raise ValueError(f"{name} must be two positive bounds, the lower first, not {low}, {high}")


def _documents(
    parameters: RagParameters, corpus: str, rng: random.Random, count_tokens: Callable[[str], int]
) -> tuple[Document, ...]:
    sentences = [sentence for sentence in re.split(r"(?<=[.!?])\s+", " ".join(corpus.split())) if len(sentence) > 20]
    if not sentences:
        raise ValueError("the corpus holds no sentences to build documents from")
    costs = [count_tokens(" " + sentence) for sentence in sentences]
    numbers = rng.sample(range(10_000, 100_000), parameters.documents)
    return tuple(
        _document(number, rng.randint(*parameters.document_tokens), sentences, costs, rng) for number in numbers
    )


def _document(number: int, size: int, sentences: list[str], costs: list[int], rng: random.Random) -> Document:
    """Sentences in random order up to `size` tokens; a number of its own in front, so that no two begin alike."""
    parts = [f"Report {number}."]
    tokens = 5
    while True:
        chosen = rng.randrange(len(sentences))
        if tokens + costs[chosen] > size and len(parts) > 1:
            break
        parts.append(sentences[chosen])
        tokens += costs[chosen]
    paragraphs = [" ".join(parts[at : at + PARAGRAPH_SENTENCES]) for at in range(0, len(parts), PARAGRAPH_SENTENCES)]
    return Document("\n\n".join(paragraphs), tokens)


def _sessions(parameters: RagParameters, documents: tuple[Document, ...], seed: int) -> tuple[Session, ...]:
    """Arrivals and each session have random streams of their own: another corpus or popularity changes no time."""
    cumulative = list(accumulate(zipf_weights(len(documents), parameters.zipf)))
    arrivals = random.Random(f"arrivals {seed}")
    sessions: list[Session] = []
    start = arrivals.expovariate(parameters.sessions_per_s)
    while start < parameters.duration_s:
        rng = random.Random(f"session {seed} {len(sessions)}")
        document = min(bisect(cumulative, rng.random()), len(documents) - 1)
        words = documents[document].text.split()
        turns = tuple(_turn(parameters, words, index, rng) for index in range(rng.randint(*parameters.turns)))
        sessions.append(Session(start, document, turns))
        start += arrivals.expovariate(parameters.sessions_per_s)
    return tuple(sessions)


def _turn(parameters: RagParameters, words: list[str], index: int, rng: random.Random) -> Turn:
    tokens = rng.randint(*parameters.answer_tokens)
    think = rng.expovariate(1 / parameters.think_s) if index and parameters.think_s else 0.0
    at = int(rng.random() * max(1, len(words) - 3))
    topic = "“" + " ".join(words[at : at + 3]).rstrip(".,;:!?") + "”"
    return Turn(rng.choice(QUESTIONS).format(topic=topic), think, tokens)
