"""From a simulation's outcomes to figures, one table and one JSON document.

Owns the definition of every metric of `bench simulate`. Must never hold a figure that depends on the machine: equal
seeds give equal documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from rich.table import Table

from loadgen.reports.schema import Slo
from loadgen.reports.statistics import max_over_mean, mean, percentile
from loadgen.virtual.fleet import Outcome
from loadgen.virtual.prompts import Job

SCHEMA = 1


class Timeline(msgspec.Struct, frozen=True):
    """By window of arrival: mean TTFT (None: nobody came), and the prompt tokens computed for them, by replica."""

    window_s: float
    ttft_mean_s: list[float | None]
    computed_tokens: dict[str, list[int]]


class PolicyFigures(msgspec.Struct, frozen=True):
    """One run. Times in seconds, None where nothing was measured.

    - `hit_rate`: trace blocks found / trace blocks of all prompts. A partial last block counts as one; prefill-only it
      may be found, in the full model never, for only full blocks are shared.
    - `token_hit_rate`: cached prompt tokens / prompt tokens.
    - `ttft_*`: from arrival to the end of the step that yields the first token.
    - `tpot_*`: over requests with two tokens or more, each (last token - first) / (tokens - 1). None prefill-only.
    - `balance`: tokens that the busiest replica computed / the mean of the fleet (1 is even), each replica counted for
      all of its life, however short; `balance_busy` the same of the time it was busy.
    - `goodput_rps`: requests that met the SLO / seconds to the end of the last; `good` is their share of all.
    """

    hit_rate: float | None
    ttft_mean_s: float | None
    ttft_p50_s: float | None
    ttft_p90_s: float | None
    ttft_p99_s: float | None
    balance: float | None
    balance_busy: float | None
    token_hit_rate: float | None
    requests: int
    errors: int
    end_s: float
    computed_tokens: dict[str, int]
    busy_s: dict[str, float]
    good: float | None
    goodput_rps: float | None
    tpot_mean_s: float | None = None
    tpot_p50_s: float | None = None
    tpot_p99_s: float | None = None
    e2e_mean_s: float | None = None
    e2e_p99_s: float | None = None
    retried: int = 0
    preemptions: int = 0
    batches_lost: int = 0
    snapshots: int = 0
    timeline: Timeline | None = None


class SimulationReport(msgspec.Struct, frozen=True):
    """`setup` says how it was simulated; `ideal` has hit rates, in the sense of `hit_rate` prefill-only."""

    schema: int
    setup: dict[str, str | int | float | bool | list[str] | None]
    policies: dict[str, PolicyFigures]
    ideal: dict[str, float]


def figures(outcome: Outcome, slo: Slo, window_s: float | None = None) -> PolicyFigures:
    served = [job for job in outcome.jobs if job.finished_s is not None]
    blocks = sum(len(job.ask.blocks) for job in served)
    prompt = sum(job.ask.prompt_tokens for job in served)
    ttfts = [_ttft(job) for job in served]
    tpots = [tpot for job in served if (tpot := _tpot(job)) is not None]
    e2es = [_finished(job) - job.ask.at_s for job in served] if tpots else []
    good = sum(_ttft(job) <= slo.ttft_s and (_tpot(job) or 0.0) <= slo.tpot_s for job in served)
    replicas = outcome.replicas
    return PolicyFigures(
        hit_rate=sum(job.found_blocks for job in served) / blocks if blocks else None,
        ttft_mean_s=mean(ttfts),
        ttft_p50_s=percentile(ttfts, 50),
        ttft_p90_s=percentile(ttfts, 90),
        ttft_p99_s=percentile(ttfts, 99),
        balance=max_over_mean([replica.computed_tokens for replica in replicas], len(replicas)),
        balance_busy=max_over_mean([replica.busy_s for replica in replicas], len(replicas)),
        token_hit_rate=sum(job.cached_tokens for job in served) / prompt if prompt else None,
        requests=len(outcome.jobs),
        errors=len(outcome.jobs) - len(served),
        end_s=outcome.end_s,
        computed_tokens={replica.name: replica.computed_tokens for replica in replicas},
        busy_s={replica.name: replica.busy_s for replica in replicas},
        good=good / len(outcome.jobs) if outcome.jobs else None,
        goodput_rps=good / outcome.end_s if outcome.end_s else None,
        tpot_mean_s=mean(tpots),
        tpot_p50_s=percentile(tpots, 50),
        tpot_p99_s=percentile(tpots, 99),
        e2e_mean_s=mean(e2es),
        e2e_p99_s=percentile(e2es, 99),
        retried=sum(job.attempts > 1 for job in outcome.jobs),
        preemptions=sum(replica.preemptions for replica in replicas),
        batches_lost=sum(replica.batches_lost for replica in replicas),
        snapshots=sum(replica.snapshots for replica in replicas),
        timeline=_timeline(served, [replica.name for replica in replicas], window_s) if window_s else None,
    )


def table(policies: Mapping[str, PolicyFigures], ideal: Mapping[str, float]) -> Table:
    full = any(found.tpot_mean_s is not None for found in policies.values())
    shown = Table(
        title="Simulated", caption="Hit rates possible: " + ", ".join(f"{k} {v:.3f}" for k, v in ideal.items())
    )
    shown.add_column("policy")
    columns = ["hit rate", "TTFT mean s", "p50", "p99", "balance"]
    columns += ["TPOT mean ms", "p99", "goodput /s", "good"] if full else []
    for column in (*columns, "errors"):
        shown.add_column(column, justify="right")
    for name, found in policies.items():
        cells = [_number(found.hit_rate, 3), *(_number(seconds, 2) for seconds in _ttft_figures(found))]
        cells.append(_number(found.balance, 2))
        if full:
            cells += [_number(_ms(found.tpot_mean_s), 1), _number(_ms(found.tpot_p99_s), 1)]
            cells += [_number(found.goodput_rps, 2), _number(found.good, 3)]
        shown.add_row(name, *cells, str(found.errors))
    return shown


def _ttft_figures(found: PolicyFigures) -> tuple[float | None, ...]:
    return found.ttft_mean_s, found.ttft_p50_s, found.ttft_p99_s


def _timeline(served: Sequence[Job], names: Sequence[str], window_s: float) -> Timeline:
    windows = 1 + max((int(job.ask.at_s / window_s) for job in served), default=-1)
    ttfts: list[list[float]] = [[] for _ in range(windows)]
    computed = {name: [0] * windows for name in names}
    for job in served:
        window = int(job.ask.at_s / window_s)
        ttfts[window].append(_ttft(job))
        computed[job.replica][window] += job.ask.prompt_tokens - job.cached_tokens
    return Timeline(window_s, [mean(window) for window in ttfts], computed)


def _ttft(job: Job) -> float:
    assert job.first_token_s is not None
    return job.first_token_s - job.ask.at_s


def _finished(job: Job) -> float:
    assert job.finished_s is not None
    return job.finished_s


def _tpot(job: Job) -> float | None:
    """None for a request that took no time after its first token: one output token, or prefill-only."""
    after = _finished(job) - (job.first_token_s or 0.0)
    return after / (job.ask.output_tokens - 1) if job.ask.output_tokens > 1 and after > 0 else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
