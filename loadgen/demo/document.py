"""The demo's figures as JSON, version 2: a flat object for each run, and what was asked.

Owns the names in this document; times in milliseconds. Must never compute a figure (`reports` does), nor round or drop
one on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from loadgen.demo.measuring import SLO, Measured
from loadgen.fleet import FleetParameters
from loadgen.plans.draws import shared_lengths
from loadgen.plans.plan import Plan
from loadgen.plans.rag import Rag
from loadgen.plans.settings import read_settings


class RunFigures(msgspec.Struct, frozen=True):
    """One run; what each figure means stands in `reports/schema.py`. None where nothing was measured.

    `tpot_ms` is the mean; `balance` is of computed tokens; `replicas` has how many answers each gave.
    """

    requests: int
    errors: int
    duration_s: float
    hit_rate: float | None
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    ttft_p99_ms: float | None
    ttft_sent_p50_ms: float | None
    tpot_ms: float | None
    tpot_p50_ms: float | None
    itl_p99_ms: float | None
    e2e_p50_ms: float | None
    goodput_rps: float | None
    balance: float | None
    balance_requests: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    lag_p99_ms: float | None
    replicas: dict[str, int]
    error_messages: dict[str, int]
    cores_busy: float


class Readers(msgspec.Struct, frozen=True):
    """What was asked of every policy; `parameters` are those of the plan, enough to make it again. Of the library's
    documents some get opened."""

    kind: str
    seed: int
    sessions: int
    library_tokens: int
    opened_documents: int
    opened_tokens: int
    parameters: dict[str, Any]
    slo: dict[str, float]
    fleet: FleetParameters


class Comparison(msgspec.Struct, frozen=True):
    policies: dict[str, RunFigures]
    workload: Readers
    version: int = 2


def comparison(runs: Mapping[str, Measured], workload: Readers) -> Comparison:
    return Comparison({name: run_figures(run) for name, run in runs.items()}, workload)


def run_figures(run: Measured) -> RunFigures:
    found = run.report.figures
    return RunFigures(
        requests=found.requests,
        errors=found.errors,
        duration_s=found.duration_s,
        hit_rate=found.hit_rate,
        ttft_p50_ms=_ms(found.ttft_p50_s),
        ttft_p95_ms=_ms(found.ttft_p95_s),
        ttft_p99_ms=_ms(found.ttft_p99_s),
        ttft_sent_p50_ms=_ms(found.ttft_sent_p50_s),
        tpot_ms=_ms(found.tpot_mean_s),
        tpot_p50_ms=_ms(found.tpot_p50_s),
        itl_p99_ms=_ms(found.itl_p99_s),
        e2e_p50_ms=_ms(found.e2e_p50_s),
        goodput_rps=found.goodput_rps,
        balance=found.balance_tokens,
        balance_requests=found.balance_requests,
        prompt_tokens=found.prompt_tokens,
        cached_tokens=found.cached_tokens,
        completion_tokens=found.completion_tokens,
        lag_p99_ms=_ms(found.lag_p99_s),
        replicas={name: facts.requests - facts.errors for name, facts in run.report.replicas.items()},
        error_messages=run.report.error_messages,
        cores_busy=run.cores_busy,
    )


def readers_facts(plan: Plan, fleet: FleetParameters) -> Readers:
    """Of a plan of the workload `rag`."""
    rag = rag_of(plan)
    library = shared_lengths(rag.documents, rag.document_tokens, plan.seed)
    opened = {session.group for session in plan.sessions}
    return Readers(
        kind="multi-turn RAG",
        seed=plan.seed,
        sessions=len(plan.sessions),
        library_tokens=sum(library),
        opened_documents=len(opened),
        opened_tokens=sum(library[document] for document in opened),
        parameters=plan.parameters,
        slo={"ttft_ms": SLO.ttft_s * 1e3, "tpot_ms": SLO.tpot_s * 1e3},
        fleet=fleet,
    )


def rag_of(plan: Plan) -> Rag:
    return read_settings(Rag, {name: plan.parameters[name] for name in Rag.__struct_fields__})


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
