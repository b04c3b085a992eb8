"""The document of one run of the load generator, version 1: what was asked, of whom, and what came of it.

Owns the names, units and meaning of every figure, and the document's JSON form. Must never compute one (`figures.py`
does), nor hold what its reader must not see: no request header and no password of a URL gets in here.
Times in seconds, rates a second; None where nothing was measured.
"""

from __future__ import annotations

from typing import Any

import msgspec

SCHEMA = 1


class Slo(msgspec.Struct, frozen=True):
    """What a reader still finds quick: a request is good when both hold (the second from its second token on)."""

    ttft_s: float = 2.0
    tpot_s: float = 0.05


class Happened(msgspec.Struct, frozen=True):
    """Something that was done to the fleet `at_s` seconds into the run; `error` is empty when it went as asked."""

    at_s: float
    what: str
    error: str = ""


class TargetFacts(msgspec.Struct, frozen=True):
    """Who was asked. `capacity_tokens` is of one replica's cache. None where the server does not say."""

    name: str
    urls: tuple[str, ...]
    model: str
    replicas: int | None
    capacity_tokens: int | None
    description: str


class PlanFacts(msgspec.Struct, frozen=True):
    """What was asked, complete enough to ask it again. `closed_loop`: so many sessions at once, else None."""

    workload: str
    seed: int
    parameters: dict[str, Any]
    duration_s: float
    sessions: int
    requests: int
    closed_loop: int | None


class Figures(msgspec.Struct, frozen=True):
    """The run in numbers. Failed requests count as requests, as errors, in the lag and against goodput, nowhere else.

    - `duration_s`: from the run's start to its last answer. `offered_rps`: requests that came due / the plan's
      duration (None in a closed loop, where the server sets the pace); `achieved_rps`: whole answers / `duration_s`.
    - `ttft_*`: from when the request was due to its first token, so that a late client cannot flatter the server;
      `ttft_sent_*`: from when it left.
    - `tpot_*`: over requests, each (last token - first token) / (tokens - 1); `itl_*`: over all gaps between chunks.
    - `e2e_*`: from when the request was due to its end.
    - `good`: share of all requests that met the SLO; `goodput_rps`: their number / `duration_s`.
    - `hit_rate`: cached prompt tokens / prompt tokens, both as the server reported them (None where it never says how
      many were cached); `predicted_hit_rate`: the same with the router's estimate, over requests with a receipt.
    - `balance_tokens`: prompt tokens that the busiest replica computed / the mean of the fleet (1 is even);
      `balance_requests`: the same of requests. By the replicas' own counters where they are known; else by answers, and
      None where these name no replicas, or do not say how many tokens were cached. Where the fleet's size is not known,
      its mean is that of the replicas that were named.
    - `regret_mean_s`: over receipts, predicted TTFT of the chosen replica - that of the best (compare/judge.py; a
      policy that predicts alike has little of it by construction). None without receipts.
    - `lag_*`: how late the client itself was in sending.
    """

    requests: int
    errors: int
    duration_s: float
    offered_rps: float | None
    achieved_rps: float | None
    ttft_mean_s: float | None
    ttft_p50_s: float | None
    ttft_p90_s: float | None
    ttft_p95_s: float | None
    ttft_p99_s: float | None
    ttft_sent_p50_s: float | None
    ttft_sent_p99_s: float | None
    tpot_mean_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    itl_p50_s: float | None
    itl_p99_s: float | None
    e2e_mean_s: float | None
    e2e_p50_s: float | None
    e2e_p99_s: float | None
    good: float | None
    goodput_rps: float | None
    hit_rate: float | None
    predicted_hit_rate: float | None
    balance_tokens: float | None
    balance_requests: float | None
    regret_mean_s: float | None
    lag_p50_s: float | None
    lag_p99_s: float | None
    lag_max_s: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    planned_prompt_tokens: int
    planned_output_tokens: int


class Validity(msgspec.Struct, frozen=True):
    """Whether the figures say anything about the server. `reasons` is empty exactly when they do."""

    valid: bool
    reasons: tuple[str, ...]


class Window(msgspec.Struct, frozen=True):
    """One stretch of the run.

    `requests`, `ttft_*` and `hit_rate` are of the requests that came due in it, `errors` of those that failed in it;
    `in_flight` is the mean number of requests that were sent and not yet ended.
    """

    start_s: float
    requests: int
    in_flight: float
    errors: int
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    hit_rate: float | None


class Timeline(msgspec.Struct, frozen=True):
    """The run by equal windows; `computed_tokens` has a list of the same length for each replica.

    Prompt tokens count as computed when their request's first token came.
    """

    window_s: float
    windows: tuple[Window, ...]
    computed_tokens: dict[str, tuple[int, ...]]


class ReplicaFacts(msgspec.Struct, frozen=True):
    """One replica as its answers named it. `requests` includes the `errors`; tokens and times are of whole answers."""

    requests: int
    errors: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    hit_rate: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None


class Computed(msgspec.Struct, frozen=True):
    """What one replica did in the run by its own counters: requests that ended, prompt tokens, and those of them that
    it had cached. Its router may have sent it more than was asked here, such as a request tried again.
    """

    requests: int
    prompt_tokens: int
    cached_tokens: int


class RunReport(msgspec.Struct, frozen=True):
    """`ideals` has hit rates over the planned prompt tokens (in a closed loop, over those sent), by name;
    `error_messages` the most frequent ones. `remarks` are what a reader of valid figures must know all the same.
    `computed` has every replica's own counters where it was started here, and `computed_unknown` says why they are not
    known.
    """

    name: str
    target: TargetFacts
    plan: PlanFacts
    slo: Slo
    validity: Validity
    figures: Figures
    ideals: dict[str, float | None]
    events: tuple[Happened, ...]
    replicas: dict[str, ReplicaFacts]
    timeline: Timeline
    error_messages: dict[str, int]
    schema: int = SCHEMA
    remarks: tuple[str, ...] = ()
    computed: dict[str, Computed] = {}
    computed_unknown: str = ""

    @property
    def sound(self) -> bool:
        """Whether the figures may be trusted as they are: nothing failed, and the run is valid."""
        return not self.figures.errors and self.validity.valid and not any(event.error for event in self.events)


def to_json(report: msgspec.Struct) -> bytes:
    """The document, indented, with a newline at its end. Raises TypeError where a plan's parameters are not JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def from_json(document: bytes) -> RunReport:
    """Raises ValueError when it is no report, or one of another version."""
    try:
        version = msgspec.json.decode(document, type=_Versioned).schema
        if version != SCHEMA:
            raise ValueError(f"this is version {version} of the report, but only version {SCHEMA} can be read")
        return msgspec.json.decode(document, type=RunReport)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a report of `bench run --json`: {error}") from error


class _Versioned(msgspec.Struct):
    schema: int
