"""A stretch of a trace as a schedule for the client: every request is a completion of its own, of token ids.

Owns how a trace is asked: when, with which tokens, for how long an answer. Must never change which prompts share a
prefix, nor their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadgen.traces import BlockTokens, TraceRequest
from loadgen.workloads import Session, Turn


class Replay:
    """`requests`, `speedup` times as fast as they came; answers have at most `max_output` tokens, and one at least."""

    path = "/v1/completions"

    def __init__(
        self, requests: Sequence[TraceRequest], tokens: BlockTokens, *, speedup: float = 1.0, max_output: int = 2**31
    ) -> None:
        if speedup <= 0 or max_output < 1:
            raise ValueError("a trace is replayed with a positive speedup, and answers of at least one token")
        self._requests = requests
        self._tokens = tokens
        self.sessions = tuple(
            Session(request.at_s / speedup, index, (Turn("", 0.0, min(max(request.output_tokens, 1), max_output)),))
            for index, request in enumerate(requests)
        )

    @property
    def duration_s(self) -> float:
        """Just long enough for the last request."""
        return self.sessions[-1].start_s + 1e-3 if self.sessions else 0.0

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its answer: what a replica must be able to take."""
        pairs = zip(self._requests, self.sessions, strict=True)
        return max((request.prompt_tokens + session.turns[0].max_tokens for request, session in pairs), default=0)

    def ask(self, session: Session, answers: Sequence[str]) -> dict[str, Any]:
        """The request's prompt; `answers` are none, for each session has one turn."""
        prompt = self._tokens.prompt(self._requests[session.document])
        return {"prompt": prompt, "max_tokens": session.turns[len(answers)].max_tokens}


def ordinary_tokens(directory: Path) -> list[int]:
    """Ids of the tokenizer in `directory` that stand for text: all but the special ones."""
    # Imported here so that `--help` need not wait for it.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    special = tokenizer.get_added_tokens_decoder().keys()
    return sorted(set(tokenizer.get_vocab(with_added_tokens=True).values()) - special)
