"""From the records of a run to its report.

Owns how every figure of `schema.py` is computed. Must never round one, nor let a failed request into a time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import msgspec

from loadgen.records import Record
from loadgen.reports.schema import (
    Computed,
    Figures,
    Happened,
    PlanFacts,
    ReplicaFacts,
    RunReport,
    Slo,
    TargetFacts,
    Validity,
)
from loadgen.reports.statistics import max_over_mean, mean, percentile, ratio
from loadgen.reports.timeline import timeline

if TYPE_CHECKING:
    from loadgen.plans.plan import Plan
    from loadgen.runs.target import Target

MESSAGES_KEPT = 20


class Setting(msgspec.Struct, frozen=True):
    """What the report needs beside the records. Seconds.

    `max_lag_s`: a run whose client was later than this at its 99th percentile is invalid. `ideals`: hit rates by name.
    `window_s`: the timeline's windows, None for a round width. `regret_mean_s`: from receipts, where they were read.
    `computed`: by the replicas' own counters, or else why it is not known.
    """

    slo: Slo = Slo()
    max_lag_s: float = 0.02
    ideals: Mapping[str, float | None] = {}
    events: tuple[Happened, ...] = ()
    window_s: float | None = None
    regret_mean_s: float | None = None
    computed: Mapping[str, Computed] = {}
    computed_unknown: str = ""


def run_report(target: Target, plan: Plan, records: Sequence[Record], setting: Setting) -> RunReport:
    """The report of one run. `records` in any order, a partial run's too."""
    served = _by_replica(records)
    names = sorted(served, key=_natural)
    found = figures(records, setting, max(target.replicas or 0, len(names)), _offered_rps(plan, len(records)))
    return RunReport(
        name=target.name,
        target=_target_facts(target),
        plan=_plan_facts(plan),
        slo=setting.slo,
        validity=_validity(found, setting.max_lag_s),
        figures=found,
        ideals=dict(setting.ideals),
        events=tuple(sorted(setting.events, key=lambda event: event.at_s)),
        replicas={name: _replica_facts(served[name], reports_cached(records)) for name in names},
        timeline=timeline(records, names, found.duration_s, setting.window_s),
        error_messages=dict(Counter(record.error for record in records if record.error).most_common(MESSAGES_KEPT)),
        computed={name: setting.computed[name] for name in sorted(setting.computed, key=_natural)},
        computed_unknown=setting.computed_unknown,
    )


def figures(records: Sequence[Record], setting: Setting, fleet: int, offered_rps: float | None) -> Figures:
    """`fleet`: number of replicas, so that those that served nothing count in the balance (0: not known)."""
    good = [record for record in records if not record.error]
    met = sum(meets(record, setting.slo) for record in good)
    duration = max((record.end for record in records), default=0.0)
    prompt, cached = _total(good)
    served, known = _by_replica(good), reports_cached(good)
    foreseen = [record for record in good if record.predicted_tokens is not None]
    ttft = _spread([record.ttft for record in good])
    sent = _spread([record.ttft_from_sending for record in good])
    tpot = _spread([record.tpot for record in good])
    itl = _spread([gap for record in good for gap in record.inter_token_latencies])
    e2e = _spread([record.end - record.due for record in good])
    lag = _spread([record.lag for record in records])
    balance = _balance(setting.computed) if setting.computed else _balance_by_answers(served, known, fleet)
    return Figures(
        requests=len(records),
        errors=len(records) - len(good),
        duration_s=duration,
        offered_rps=offered_rps,
        achieved_rps=ratio(len(good), duration),
        ttft_mean_s=ttft.mean,
        ttft_p50_s=ttft.p50,
        ttft_p90_s=ttft.p90,
        ttft_p95_s=ttft.p95,
        ttft_p99_s=ttft.p99,
        ttft_sent_p50_s=sent.p50,
        ttft_sent_p99_s=sent.p99,
        tpot_mean_s=tpot.mean,
        tpot_p50_s=tpot.p50,
        tpot_p99_s=tpot.p99,
        itl_p50_s=itl.p50,
        itl_p99_s=itl.p99,
        e2e_mean_s=e2e.mean,
        e2e_p50_s=e2e.p50,
        e2e_p99_s=e2e.p99,
        good=ratio(met, len(records)),
        goodput_rps=ratio(met, duration),
        hit_rate=ratio(cached, prompt) if known else None,
        predicted_hit_rate=ratio(sum(record.predicted_tokens or 0 for record in foreseen), _total(foreseen)[0]),
        balance_tokens=balance.tokens,
        balance_requests=balance.requests,
        regret_mean_s=setting.regret_mean_s,
        lag_p50_s=lag.p50,
        lag_p99_s=lag.p99,
        lag_max_s=lag.max,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=sum(record.completion_tokens for record in good),
        planned_prompt_tokens=sum(record.planned_prompt_tokens for record in records),
        planned_output_tokens=sum(record.planned_output_tokens for record in records),
    )


def reports_cached(records: Iterable[Record]) -> bool:
    """Whether the server says how many prompt tokens were cached. Some leave it out of an answer that had none, so one
    answer that says it will do; a server that never does has no hit rate, rather than one of 0.
    """
    return any(record.reports_cached and not record.error for record in records)


def meets(record: Record, slo: Slo) -> bool:
    """Whether an answer came whole and in time. An answer of one token has no TPOT to miss."""
    if record.error or record.ttft is None or record.ttft > slo.ttft_s:
        return False
    return record.tpot is None or record.tpot <= slo.tpot_s


class _Spread(NamedTuple):
    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None


def _spread(values: Sequence[float | None]) -> _Spread:
    known = sorted(value for value in values if value is not None)
    cuts = (percentile(known, percent) for percent in (50, 90, 95, 99, 100))
    return _Spread(mean(known), *cuts)


def _total(records: Sequence[Record]) -> tuple[int, int]:
    """Prompt tokens and the cached ones among them."""
    return sum(record.prompt_tokens for record in records), sum(record.cached_tokens for record in records)


class _Balance(NamedTuple):
    tokens: float | None
    requests: float | None


def _balance(computed: Mapping[str, Computed]) -> _Balance:
    tokens = [each.prompt_tokens - each.cached_tokens for each in computed.values()]
    requests = [each.requests for each in computed.values()]
    return _Balance(max_over_mean(tokens, len(tokens)), max_over_mean(requests, len(requests)))


def _balance_by_answers(served: Mapping[str, Sequence[Record]], known: bool, fleet: int) -> _Balance:
    """`known`: whether cached tokens are."""
    tokens = [prompt - cached for prompt, cached in map(_total, served.values())]
    requests = [len(its) for its in served.values()]
    return _Balance(max_over_mean(tokens, fleet) if known else None, max_over_mean(requests, fleet))


def _by_replica(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Only those whose answer named a replica."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record.replica:
            found.setdefault(record.replica, []).append(record)
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """r2 before r10: of two numbers the one with fewer digits is the smaller."""
    parts = re.split(r"([0-9]+)", name)
    return [(len(part.lstrip("0")), part) if index % 2 else (0, part) for index, part in enumerate(parts)]


def _replica_facts(records: Sequence[Record], known: bool) -> ReplicaFacts:
    """`known`: whether cached tokens are."""
    good = [record for record in records if not record.error]
    prompt, cached = _total(good)
    ttft = _spread([record.ttft for record in good])
    return ReplicaFacts(
        requests=len(records),
        errors=len(records) - len(good),
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=sum(record.completion_tokens for record in good),
        hit_rate=ratio(cached, prompt) if known else None,
        ttft_p50_s=ttft.p50,
        ttft_p99_s=ttft.p99,
    )


def _offered_rps(plan: Plan, requests: int) -> float | None:
    return None if plan.concurrency is not None else ratio(requests, plan.duration_s)


def _validity(found: Figures, max_lag_s: float) -> Validity:
    reasons = []
    if not found.requests:
        reasons.append("no request was due: lengthen the run (--duration) or raise the rate (--arrivals)")
    elif found.errors == found.requests:
        reasons.append("every request failed: nothing was measured")
    if found.lag_p99_s is not None and found.lag_p99_s > max_lag_s:
        reasons.append(
            f"the client itself was late: lag p99 {found.lag_p99_s * 1e3:.1f} ms, allowed {max_lag_s * 1e3:g} ms; "
            "lower the rate, give the client a core of its own, or raise --max-lag"
        )
    return Validity(not reasons, tuple(reasons))


def _target_facts(target: Target) -> TargetFacts:
    return TargetFacts(
        name=target.name,
        urls=tuple(_without_password(url) for url in target.urls),
        model=target.model,
        replicas=target.replicas,
        capacity_tokens=target.capacity_tokens,
        description=target.description,
    )


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _plan_facts(plan: Plan) -> PlanFacts:
    return PlanFacts(
        workload=plan.workload,
        seed=plan.seed,
        parameters=plan.parameters,
        duration_s=plan.duration_s,
        sessions=len(plan.sessions),
        requests=plan.requests,
        closed_loop=plan.concurrency,
    )
