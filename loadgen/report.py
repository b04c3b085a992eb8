"""From records to figures, from figures to one table and one JSON document.

Owns the definition of every metric. Must never round or drop a figure on the way into the JSON form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
from rich.table import Table

from loadgen.fleet import FleetParameters
from loadgen.records import Record
from loadgen.reports.rows import Better, Figure, best, texts
from loadgen.reports.statistics import max_over_mean, mean, percentile
from loadgen.workloads import RagParameters


class Slo(msgspec.Struct, frozen=True):
    """What a reader still finds quick: a request is good when both hold."""

    ttft_ms: float = 500.0
    tpot_ms: float = 50.0


class PolicyReport(msgspec.Struct, frozen=True):
    """One run. Times in milliseconds, rates a second; None where nothing was measured.

    - `hit_rate`: cached prompt tokens / prompt tokens, both as the server reported them.
    - `ttft_*`: from when the request was due to its first token; `ttft_sent_p50_ms` from when it was sent.
    - `tpot_*`: over requests, each (last token - first token) / (tokens - 1); `itl_p99_ms`: over all gaps between
      chunks.
    - `goodput_rps`: requests that met the SLO / seconds from the run's start to its last answer.
    - `balance`: prompt tokens that the busiest replica computed / the mean of the fleet (1 is even);
      `balance_requests`: the same of requests.
    - `lag_p99_ms`: how late the client itself was, so that its own slowness cannot pass for the server's.
    - `cores_busy`: CPU seconds a second of client, router and replicas together, their start included.
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
    goodput_rps: float
    balance: float | None
    balance_requests: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    lag_p99_ms: float | None
    replicas: dict[str, int]
    error_messages: dict[str, int]
    cores_busy: float | None = None


class WorkloadReport(msgspec.Struct, frozen=True):
    """What was asked of every policy, complete enough to ask it again. Of the library's documents some get opened."""

    kind: str
    seed: int
    sessions: int
    library_tokens: int
    opened_documents: int
    opened_tokens: int
    parameters: RagParameters
    slo: Slo
    fleet: FleetParameters


class Comparison(msgspec.Struct, frozen=True):
    policies: dict[str, PolicyReport]
    workload: WorkloadReport
    version: int = 1


def summarise(records: Sequence[Record], slo: Slo, fleet_size: int) -> PolicyReport:
    """The figures of one run over `fleet_size` replicas; those that served nothing count in the balance.

    Failed requests count only as errors, and their lag.
    """
    good = [record for record in records if not record.error]
    ttft = _ms(record.ttft for record in good)
    tpot = _ms(record.tpot for record in good)
    duration = max((record.end for record in records), default=0.0)
    prompt = sum(record.prompt_tokens for record in good)
    cached = sum(record.cached_tokens for record in good)
    served = Counter(record.replica for record in good if record.replica)
    computed: Counter[str] = Counter()
    for record in good:
        computed[record.replica] += record.prompt_tokens - record.cached_tokens
    return PolicyReport(
        requests=len(records),
        errors=len(records) - len(good),
        duration_s=duration,
        hit_rate=cached / prompt if prompt else None,
        ttft_p50_ms=percentile(ttft, 50),
        ttft_p95_ms=percentile(ttft, 95),
        ttft_p99_ms=percentile(ttft, 99),
        ttft_sent_p50_ms=percentile(_ms(record.ttft_from_sending for record in good), 50),
        tpot_ms=mean(tpot),
        tpot_p50_ms=percentile(tpot, 50),
        itl_p99_ms=percentile(_ms(gap for record in good for gap in record.inter_token_latencies), 99),
        e2e_p50_ms=percentile(_ms(record.end - record.due for record in good), 50),
        goodput_rps=sum(meets(record, slo) for record in good) / duration if duration else 0.0,
        balance=max_over_mean(computed.values(), fleet_size),
        balance_requests=max_over_mean(served.values(), fleet_size),
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=sum(record.completion_tokens for record in good),
        lag_p99_ms=percentile(_ms(record.lag for record in records), 99),
        replicas=dict(sorted(served.items())),
        error_messages=dict(Counter(record.error for record in records if record.error).most_common()),
    )


def meets(record: Record, slo: Slo) -> bool:
    """Whether an answer came whole and in time. An answer of one token has no TPOT to miss."""
    if record.error or record.ttft is None or record.ttft * 1e3 > slo.ttft_ms:
        return False
    return record.tpot is None or record.tpot * 1e3 <= slo.tpot_ms


def _ms(seconds: Iterable[float | None]) -> list[float]:
    return [value * 1e3 for value in seconds if value is not None]


class _Row(msgspec.Struct, frozen=True):
    """`better` picks the best value; None where more is neither better nor worse."""

    label: str
    figure: Callable[[PolicyReport], Figure]
    form: str
    better: Better


def _rows(slo: Slo) -> list[_Row]:
    return [
        _Row("hit rate", lambda report: report.hit_rate, "{:.1%}", max),
        _Row("TTFT p50, ms", lambda report: report.ttft_p50_ms, "{:,.0f}", min),
        _Row("TTFT p95, ms", lambda report: report.ttft_p95_ms, "{:,.0f}", min),
        _Row("TTFT p99, ms", lambda report: report.ttft_p99_ms, "{:,.0f}", min),
        _Row("TPOT mean, ms", lambda report: report.tpot_ms, "{:.2f}", min),
        _Row("ITL p99, ms", lambda report: report.itl_p99_ms, "{:.1f}", min),
        _Row("end to end p50, ms", lambda report: report.e2e_p50_ms, "{:,.0f}", min),
        _Row(
            f"goodput, req/s (TTFT ≤ {slo.ttft_ms:g} ms, TPOT ≤ {slo.tpot_ms:g} ms)",
            lambda report: report.goodput_rps,
            "{:.2f}",
            max,
        ),
        _Row("balance, computed tokens (max / mean)", lambda report: report.balance, "{:.2f}", min),
        _Row("balance, requests (max / mean)", lambda report: report.balance_requests, "{:.2f}", min),
        _Row("requests", lambda report: report.requests, "{:,}", None),
        _Row("errors", lambda report: report.errors, "{:,}", None),
        _Row("client's own lag p99, ms", lambda report: report.lag_p99_ms, "{:.1f}", None),
        _Row("CPU cores busy here", lambda report: report.cores_busy, "{:.2f}", None),
    ]


def table(policies: Mapping[str, PolicyReport], slo: Slo) -> Table:
    """One column a policy; the best of each row is bold and starred (shared by equals; none where all are equal)."""
    grid = Table(title="The same schedule under each policy (* best)")
    grid.add_column("")
    for name in policies:
        grid.add_column(name, justify="right")
    for row in _rows(slo):
        grid.add_row(row.label, *_cells(row, [row.figure(report) for report in policies.values()]))
    return grid


def _cells(row: _Row, figures: list[Figure]) -> list[str]:
    shown = zip(texts(row.form, figures), best(row.form, figures, row.better), strict=True)
    return [f"[bold green]{text} *[/]" if mark else text for text, mark in shown]


def failures(policies: Mapping[str, PolicyReport]) -> list[str]:
    """What makes a comparison worthless, a line each: failed requests by their message, and runs without a request."""
    lines = []
    for name, report in policies.items():
        lines += [f"{name}: {count} x {message}" for message, count in report.error_messages.items()]
        if not report.requests:
            lines.append(f"{name}: no request was due; lengthen the run or raise the rate of readers")
    return lines


def verdict(policies: Mapping[str, PolicyReport], subject: str, other: str) -> str:
    """One sentence on `subject` against `other`, from their figures alone, whichever way they point."""
    ours, theirs = policies[subject], policies[other]
    parts = [
        _ratio("hit rate", ours.hit_rate, theirs.hit_rate, "higher", "lower"),
        _ratio("TTFT p50", ours.ttft_p50_ms, theirs.ttft_p50_ms, "higher", "lower"),
        _ratio("TTFT p95", ours.ttft_p95_ms, theirs.ttft_p95_ms, "higher", "lower"),
    ]
    return f"{subject} against {other}: {', '.join(parts)}."


def _ratio(label: str, ours: Figure, theirs: Figure, more: str, less: str) -> str:
    if not ours or not theirs:
        return f"{label} not comparable"
    factor = max(ours, theirs) / min(ours, theirs)
    if factor < 1.05:
        return f"{label} about the same"
    return f"{label} {factor:.1f}x {more if ours > theirs else less}"
