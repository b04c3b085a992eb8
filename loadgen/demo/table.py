"""What the demo says of its runs: one table, and a sentence for each policy that kv is compared with.

Owns the choice of lines and the words of the sentence. Must never favour a policy: the figures alone decide.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from loadgen.demo.measuring import Measured
from loadgen.reports import terminal
from loadgen.reports.rows import Figure, Group, Row, field, in_ms, slo_text
from loadgen.reports.schema import RunReport

TITLE = "The same schedule under each policy"


def table(runs: Mapping[str, Measured]) -> Table:
    """One column a policy; the best of each row is bold and starred (shared by equals; none where all are equal)."""
    reports = {name: run.report for name, run in runs.items()}
    cores = {run.report.name: run.cores_busy for run in runs.values()}
    return terminal.table(reports, [Group("", _rows(reports, cores))], TITLE)


def _rows(reports: Mapping[str, RunReport], cores: Mapping[str, float]) -> tuple[Row, ...]:
    slo = slo_text({report.slo for report in reports.values()})
    return (
        field("hit rate", "hit_rate", "{:.1%}", max),
        in_ms("TTFT p50", "ttft_p50_s", "{:,.0f}"),
        in_ms("TTFT p95", "ttft_p95_s", "{:,.0f}"),
        in_ms("TTFT p99", "ttft_p99_s", "{:,.0f}"),
        in_ms("TPOT mean", "tpot_mean_s", "{:.2f}"),
        in_ms("ITL p99", "itl_p99_s", "{:.1f}"),
        in_ms("end to end p50", "e2e_p50_s", "{:,.0f}"),
        field(f"goodput, req/s ({slo})", "goodput_rps", "{:.2f}", max),
        field("balance, computed tokens (max / mean)", "balance_tokens", "{:.2f}", min),
        field("balance, requests (max / mean)", "balance_requests", "{:.2f}", min),
        field("requests", "requests", "{:,}"),
        field("errors", "errors", "{:,}"),
        in_ms("client's own lag p99", "lag_p99_s", "{:.1f}", None),
        Row("CPU cores busy here", lambda report: cores[report.name], "{:.2f}"),
    )


def verdict(runs: Mapping[str, Measured], subject: str, other: str) -> str:
    """One sentence on `subject` against `other`, from their figures alone, whichever way they point."""
    ours, theirs = runs[subject].report.figures, runs[other].report.figures
    parts = [
        _ratio("hit rate", ours.hit_rate, theirs.hit_rate),
        _ratio("TTFT p50", ours.ttft_p50_s, theirs.ttft_p50_s),
        _ratio("TTFT p95", ours.ttft_p95_s, theirs.ttft_p95_s),
    ]
    return f"{subject} against {other}: {', '.join(parts)}."


def _ratio(label: str, ours: Figure, theirs: Figure) -> str:
    if not ours or not theirs:
        return f"{label} not comparable"
    factor = max(ours, theirs) / min(ours, theirs)
    if factor < 1.05:
        return f"{label} about the same"
    return f"{label} {factor:.1f}x {'higher' if ours > theirs else 'lower'}"
