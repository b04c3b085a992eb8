"""The receipt: what was known when a request was routed, what was chosen and why, and what really happened.

Owns the record only; policies fill in the first half, the data plane the second, each field once.
"""

from __future__ import annotations

import msgspec


class Query(msgspec.Struct, frozen=True, gc=False):
    """What a policy may know of a request. `session` is empty when the request names none. `prefix` is the key of the
    prompt's first two blocks (of the first, if it has one only), unsigned 64-bit; 0 when it has none. `now` is the
    time on the ledger's clock. Of an answer that is not `streamed`, the first byte comes with the last. `output_tokens`
    is what the request allows; `answer_s` how long its answer will probably decode.
    """

    prompt_tokens: int
    output_tokens: int
    session: str = ""
    prefix: int = 0
    now: float = 0.0
    streamed: bool = True
    answer_s: float = 0.0


class Choice(msgspec.Struct, frozen=True, gc=False):
    """The position of the chosen candidate, why, and each candidate's cost where the policy weighs them (lower is
    better; seconds for `kv`, else the unit that the policy names).
    """

    index: int
    why: str
    costs: list[float] | None = None


class Receipt(msgspec.Struct, omit_defaults=True):
    """One routed request. Tokens are counts, times are seconds; `at` is Unix time. Lists run parallel to
    `candidates`; `loads` holds uncached tokens queued, requests without a first byte, requests decoding.
    `output_tokens`, `prefix`, `streamed` and `answer_s` are the query's, so that another policy can be asked
    afterwards. The session is left out: it may say who asked.
    """

    request_id: str
    at: float
    model: str
    path: str
    policy: str
    mode: str
    prompt_tokens: int
    candidates: tuple[str, ...]
    overlap_tokens: list[int]
    loads: list[tuple[int, int, int]]
    costs: list[float] | None
    chosen: str
    why: str
    output_tokens: int = 0
    prefix: int = 0
    streamed: bool = True
    answer_s: float = 0.0
    attempts: int = 1
    # What really happened.
    status: int | None = None
    outcome: str | None = None
    cached_tokens: int | None = None
    ttft_s: float | None = None
    duration_s: float | None = None
