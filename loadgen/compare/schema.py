"""The JSON document of `radixgate bench compare`, version 1.

Owns the form, as plain data. Must never compute: paired.py does. Fields may be added within a version; one that changes
its meaning makes a new version. Times are in seconds, shares between 0 and 1.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from loadgen.reports.schema import PlanFacts, RunReport, Slo

SCHEMA = 1
CONFIDENCE = 0.95

Better = Literal["lower", "higher"]
Method = Literal["t", "bootstrap", "none"]
Kind = Literal["policy", "url", "command"]


class Estimate(msgspec.Struct, frozen=True):
    """A value with its confidence interval.

    `method` says where the interval is from: Student's t over `samples` repetitions, a bootstrap over `samples`
    sessions, or none, because there were too few of them (`low` and `high` are then None).
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    method: Method = "none"
    samples: int = 0

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out zero: the sign of a difference is known."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class PairedMetric(msgspec.Struct, frozen=True):
    """One metric of single requests, over pairs of the same request asked of both sides.

    Differences are the side's value minus the baseline's. `median_ratio` is the side's median over the baseline's (1:
    equal). `better_share` is the share of pairs in which the side was better, a tie counting half. The metrics:

    - `ttft_s`: from when the request was due to its first token; `ttft_sent_s` from when it was sent;
    - `tpot_s`: mean time per output token after the first;
    - `e2e_s`: from when it was due to its end;
    - `cached_share`: cached prompt tokens / prompt tokens, as the server reported them.
    """

    metric: str
    better: Better
    pairs: int
    mean_difference: Estimate
    median_difference: Estimate
    median_ratio: Estimate
    better_share: float | None = None


class RunMetric(msgspec.Struct, frozen=True):
    """One figure of whole runs: the mean over repetitions of each side, and the difference (side minus baseline).

    Over all answered requests of a run, paired or not: `ttft_p50_s`, `ttft_p95_s`, `ttft_p99_s` and `ttft_mean_s` from
    when they were due; `tpot_mean_s`; `e2e_p50_s`; `hit_rate`, cached prompt tokens / prompt tokens. Over all requests:
    `good`, the share that met the SLO, and `goodput_rps`, their number a second up to the last answer. All as in the
    report of a single run. `balance_tokens` and `balance_requests` too, but only by the replicas' own counters: None of
    a side whose replicas were not started here.
    """

    metric: str
    better: Better
    baseline: float | None
    side: float | None
    difference: Estimate


class LeftOut(msgspec.Struct, frozen=True):
    """Requests that make no pair, by why: they failed on a side, or were asked of one side only (a session ends with a
    failure, and a faster server is asked more follow-ups before the time is up).
    """

    failed_on_baseline: int = 0
    failed_on_side: int = 0
    failed_on_both: int = 0
    only_on_baseline: int = 0
    only_on_side: int = 0

    @property
    def total(self) -> int:
        return sum(msgspec.structs.astuple(self))


class Against(msgspec.Struct, frozen=True):
    """One side against the baseline, over the repetitions that both finished."""

    side: str
    baseline: str
    repetitions: int
    pairs: int
    left_out: LeftOut
    requests: tuple[PairedMetric, ...]
    runs: tuple[RunMetric, ...]


class Repetition(msgspec.Struct, frozen=True):
    """One run of one side. `number` counts from 0; `position` is its place within that round."""

    number: int
    position: int
    report: RunReport


class Side(msgspec.Struct, frozen=True):
    """`fresh` says whether each repetition had a server of its own with empty caches."""

    name: str
    kind: Kind
    description: str
    fresh: bool
    repetitions: tuple[Repetition, ...] = ()


class ComparisonReport(msgspec.Struct, frozen=True):
    """Every other side against the first, the baseline. `order` names the sides as they ran, finished runs only.
    `interrupted` says why repetitions are missing: somebody, or a failure, ended the comparison; empty when all are
    there. `notes` are for the reader.
    """

    baseline: str
    sides: tuple[Side, ...]
    against: tuple[Against, ...]
    plan: PlanFacts
    slo: Slo
    repetitions_asked: int
    repetitions_done: int
    order: tuple[str, ...] = ()
    interrupted: str = ""
    notes: tuple[str, ...] = ()
    confidence: float = CONFIDENCE
    schema: int = SCHEMA
