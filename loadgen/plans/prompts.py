"""A plan's pieces as what a server is asked: text, token ids or a chat.

Owns the bodies of requests. Must never look at a clock or a server: equal plans give equal bodies in every run and
process, but for the answers really received where a conversation's history is to hold those.

As text, a prompt is its pieces' words in a row, each one token of the tokenizer whose words they are (`verify_text`
proves it); as token ids, the same tokens. As a chat, adjacent pieces of one role are one message, and the model's chat
template adds tokens of its own between messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, Literal, get_args

from loadgen.plans.plan import Piece, Plan, Session
from loadgen.plans.vocabulary import Vocabulary, read_vocabulary
from loadgen.plans.wording import Wording
from replica import tokenizer

Form = Literal["text", "tokens", "chat"]
History = Literal["planned", "real"]


class Prompts:
    """Bodies for the turns of one plan.

    With the history *planned*, a growing prompt holds answers out of the plan, so that every server is asked the very
    same, and answers go on to their planned length (`ignore_eos`, an addition of vLLM's that most servers know). With
    the history *real* it holds the answers that came, which end where the model ends them: the more natural
    conversation, and the one in which an answer's KV is found again.

    `vocabulary` is that of the served model, for exact lengths with another tokenizer than the bundled one. Raises
    ValueError for what cannot be had.
    """

    def __init__(self, plan: Plan, form: Form, history: History, vocabulary: Vocabulary | None = None) -> None:
        if form not in get_args(Form):
            raise ValueError(f"form: {form!r} is none; it is text, tokens or chat")
        if history not in get_args(History):
            raise ValueError(f"history: {history!r} is none; it is planned or real")
        if form == "tokens" and history == "real" and plan.growing:
            raise ValueError("history: answers come as text, so prompts of token ids take the planned history only")
        if history == "real" and plan.growing and _has_fixed_times(plan):
            raise ValueError(
                "history: a turn at a fixed time may be due before the answer that it would hold; use planned"
            )
        self.plan = plan
        self.form = form
        self.history = history
        self._exact = history == "planned"
        self._wording = Wording(vocabulary or read_vocabulary(tokenizer.directory()), plan.seed)

    @property
    def path(self) -> str:
        """Where requests go, below the server's origin."""
        return "/v1/chat/completions" if self.form == "chat" else "/v1/completions"

    def body(self, session: Session, turn: int, answers: Sequence[str]) -> dict[str, Any]:
        """The turn's prompt or messages, and how long its answer may be; without the fields every request has.

        `answers` are those really received so far; only a real history needs them. Raises ValueError when it lacks one.
        """
        body: dict[str, Any] = {"max_tokens": session.turns[turn].output_tokens}
        if self._exact:
            body["ignore_eos"] = True
        if self.form == "tokens":
            body["prompt"] = self.tokens(self.pieces(session, turn))
        elif self.form == "text":
            body["prompt"] = "".join(text for _, text in self._spoken(session, turn, answers))
        else:
            body["messages"] = _messages(self._spoken(session, turn, answers))
        return body

    def pieces(self, session: Session, turn: int) -> tuple[Piece, ...]:
        """The whole prompt, planned answers of earlier turns included (in place of the real ones, if need be)."""
        if not self.plan.growing:
            return session.turns[turn].pieces
        pieces: list[Piece] = []
        for earlier in range(turn):
            pieces += session.turns[earlier].pieces
            pieces.append(self.answer(session, earlier))
        return (*pieces, *session.turns[turn].pieces)

    def answer(self, session: Session, turn: int) -> Piece:
        """The planned answer. Its content number is below 0 and its own; sessions that are equal have equal answers."""
        return Piece(-1 - self._answers_before[session] - turn, session.turns[turn].output_tokens, "assistant")

    def prompt_tokens(self, session: Session, turn: int) -> int:
        """Tokens of the prompt as planned; a chat template's own are not counted."""
        return sum(piece.tokens for piece in self.pieces(session, turn))

    def tokens(self, pieces: Iterable[Piece]) -> list[int]:
        """The ids of these pieces' words in a row."""
        ids: list[int] = []
        for piece in pieces:
            ids += self._wording.ids(piece.content, piece.tokens)
        return ids

    def text(self, pieces: Iterable[Piece]) -> str:
        """These pieces' words in a row."""
        return "".join([self._wording.text(piece.content, piece.tokens) for piece in pieces])

    def _spoken(self, session: Session, turn: int, answers: Sequence[str]) -> list[tuple[str, str]]:
        """Role and text of each part of the prompt."""
        if self._exact or not self.plan.growing:
            return [(piece.role, self.text((piece,))) for piece in self.pieces(session, turn)]
        if len(answers) < turn:
            raise ValueError(f"turn {turn} of a conversation with its real history needs {turn} answers")
        spoken: list[tuple[str, str]] = []
        for number in range(turn + 1):
            spoken += [(piece.role, self.text((piece,))) for piece in session.turns[number].pieces]
            if number < turn:
                spoken.append(("assistant", answers[number]))
        return spoken

    @cached_property
    def _answers_before(self) -> dict[Session, int]:
        """How many answers the sessions before each one have."""
        before: dict[Session, int] = {}
        count = 0
        for session in self.plan.sessions:
            before.setdefault(session, count)
            count += len(session.turns)
        return before


def _has_fixed_times(plan: Plan) -> bool:
    return any(turn.due_s is not None for session in plan.sessions for turn in session.turns[1:])


def _messages(spoken: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """A message for each run of one role."""
    return [
        {"role": role, "content": "".join([text for _, text in run])}
        for role, run in groupby(spoken, key=lambda part: part[0])
    ]
