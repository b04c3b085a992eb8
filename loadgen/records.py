"""What the client saw of one request: the raw material of every report.

Owns the record and the times derived from a single one. Must never aggregate: `reports` do.
All times are in seconds since the run began.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec


class Record(msgspec.Struct, frozen=True):
    """One request of a session, from the moment it was due to its end.

    `due` is when the schedule wanted it, `sent` when it left; `token_times` holds the arrival of every chunk that
    carried text. `status` is 0 when no response came; `error` is empty exactly when the answer came whole. Token counts
    are the server's own (0 when it reported none), and `reports_cached` is whether it said how many were cached, were
    it 0; `replica` is what the router named. `request_id` is what the response called the request, or
    else what it was sent with. `planned_*` tokens are what the plan wanted, 0 where it
    does not say; `group` is the session's. `predicted_tokens` are those that the router believed the chosen replica to
    hold, None where no receipt tells.
    """

    session: int
    turn: int
    due: float
    sent: float
    end: float
    token_times: tuple[float, ...] = ()
    status: int = 0
    error: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    replica: str = ""
    request_id: str = ""
    group: int = 0
    planned_prompt_tokens: int = 0
    planned_output_tokens: int = 0
    predicted_tokens: int | None = None
    reports_cached: bool = True

    @property
    def lag(self) -> float:
        """How late the client itself was."""
        return self.sent - self.due

    @property
    def ttft(self) -> float | None:
        """Time to first token from when the request was due, so that a late client cannot flatter the server."""
        return self.token_times[0] - self.due if self.token_times else None

    @property
    def ttft_from_sending(self) -> float | None:
        return self.token_times[0] - self.sent if self.token_times else None

    @property
    def tpot(self) -> float | None:
        """Mean time per output token after the first; None for an answer of one token."""
        tokens = self.completion_tokens or len(self.token_times)
        if tokens < 2 or len(self.token_times) < 2:
            return None
        return (self.token_times[-1] - self.token_times[0]) / (tokens - 1)

    @property
    def inter_token_latencies(self) -> list[float]:
        return [after - before for before, after in pairwise(self.token_times)]
