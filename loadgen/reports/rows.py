"""The lines of every table of figures: what each is called, how it is written, and which way is better.

Owns the choice of lines, their words and the rule of the best. Must never know what draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from loadgen.compare.schema import Estimate
from loadgen.reports.schema import RunReport, Slo

NOTHING = "–"
Figure = float | int | None
Better = Callable[[Sequence[float]], float] | None


class Row(msgspec.Struct, frozen=True):
    """`better` picks the best of several values; None where more is neither better nor worse."""

    label: str
    figure: Callable[[RunReport], Figure]
    form: str
    better: Better = None
    scale: float = 1.0

    def figures(self, reports: Mapping[str, RunReport]) -> list[Figure]:
        found = (self.figure(report) for report in reports.values())
        return [value if value is None or self.scale == 1.0 else value * self.scale for value in found]


class Group(msgspec.Struct, frozen=True):
    name: str
    rows: tuple[Row, ...]


def texts(form: str, figures: Sequence[Figure]) -> list[str]:
    return [NOTHING if figure is None else form.format(figure) for figure in figures]


def best(form: str, figures: Sequence[Figure], better: Better) -> list[bool]:
    """Which are the best, shared by equals; none where all that are known are equal.

    Equality is judged as printed: a difference too small to show is none.
    """
    shown = texts(form, figures)
    known = [figure for figure in figures if figure is not None]
    if better is None or len(set(texts(form, known))) < 2:
        return [False] * len(shown)
    winner = form.format(better(known))
    return [text == winner for text in shown]


def groups(reports: Mapping[str, RunReport]) -> list[Group]:
    """The lines that at least one of the reports has a figure for."""
    every = [
        Group("Requests", _requests(slo_text({report.slo for report in reports.values()}))),
        Group("Latency", _latency()),
        Group("Cache", _cache(reports)),
        Group("Fleet and client", _fleet()),
    ]
    kept = (Group(group.name, tuple(row for row in group.rows if _known(row, reports))) for group in every)
    return [group for group in kept if group.rows]


def _known(row: Row, reports: Mapping[str, RunReport]) -> bool:
    return any(figure is not None for figure in row.figures(reports))


def slo_text(slos: set[Slo]) -> str:
    """What a good request is, as it stands beside figures of such."""
    if len(slos) != 1:
        return "each under its own SLO"
    slo = next(iter(slos))
    return f"TTFT ≤ {slo.ttft_s:g} s, TPOT ≤ {slo.tpot_s * 1e3:g} ms"


def field(label: str, name: str, form: str, better: Better = None, scale: float = 1.0) -> Row:
    """The line of the figure of this name in `schema.Figures`."""
    return Row(label, lambda report: getattr(report.figures, name), form, better, scale)


def in_ms(label: str, name: str, form: str = "{:,.1f}", better: Better = min) -> Row:
    """The same of a time, in milliseconds."""
    return field(f"{label}, ms", name, form, better, 1e3)


def _requests(slo: str) -> tuple[Row, ...]:
    return (
        Row("requests planned", lambda report: report.plan.requests, "{:,}"),
        field("requests", "requests", "{:,}"),
        field("errors", "errors", "{:,}", min),
        field("duration, s", "duration_s", "{:,.1f}"),
        field("offered, req/s", "offered_rps", "{:,.2f}"),
        field("answered, req/s", "achieved_rps", "{:,.2f}", max),
        field(f"good ({slo})", "good", "{:.1%}", max),
        field("goodput, req/s", "goodput_rps", "{:,.2f}", max),
    )


def _latency() -> tuple[Row, ...]:
    return (
        in_ms("TTFT mean", "ttft_mean_s"),
        in_ms("TTFT p50", "ttft_p50_s"),
        in_ms("TTFT p90", "ttft_p90_s"),
        in_ms("TTFT p95", "ttft_p95_s"),
        in_ms("TTFT p99", "ttft_p99_s"),
        in_ms("TTFT from sending p50", "ttft_sent_p50_s"),
        in_ms("TTFT from sending p99", "ttft_sent_p99_s"),
        in_ms("TPOT mean", "tpot_mean_s", "{:,.2f}"),
        in_ms("TPOT p50", "tpot_p50_s", "{:,.2f}"),
        in_ms("TPOT p99", "tpot_p99_s", "{:,.2f}"),
        in_ms("ITL p50", "itl_p50_s", "{:,.2f}"),
        in_ms("ITL p99", "itl_p99_s", "{:,.2f}"),
        in_ms("end to end mean", "e2e_mean_s"),
        in_ms("end to end p50", "e2e_p50_s"),
        in_ms("end to end p99", "e2e_p99_s"),
    )


def _cache(reports: Mapping[str, RunReport]) -> tuple[Row, ...]:
    ideals = dict.fromkeys(name for report in reports.values() for name in report.ideals)
    return (
        field("hit rate", "hit_rate", "{:.1%}", max),
        field("hit rate, the router's estimate", "predicted_hit_rate", "{:.1%}"),
        *(
            Row(f"hit rate, one cache for all: {name.replace('_', ' ')}", partial(_ideal, name), "{:.1%}")
            for name in ideals
        ),
        field("prompt tokens", "prompt_tokens", "{:,}"),
        field("cached tokens", "cached_tokens", "{:,}"),
        field("completion tokens", "completion_tokens", "{:,}"),
    )


def _ideal(name: str, report: RunReport) -> Figure:
    return report.ideals.get(name)


def _fleet() -> tuple[Row, ...]:
    return (
        field("balance, computed tokens (max / mean)", "balance_tokens", "{:.2f}", min),
        field("balance, requests (max / mean)", "balance_requests", "{:.2f}", min),
        in_ms("regret mean, predicted", "regret_mean_s", "{:,.2f}"),
        in_ms("client's own lag p50", "lag_p50_s", "{:,.1f}", None),
        in_ms("client's own lag p99", "lag_p99_s", "{:,.1f}", None),
        in_ms("client's own lag max", "lag_max_s", "{:,.1f}", None),
    )


def interval_text(estimate: Estimate, scale: float, form: str) -> str:
    """An estimate and, where it has one, its interval."""
    if estimate.value is None:
        return NOTHING
    text = form.format(estimate.value * scale)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{form.format(estimate.low * scale)}, {form.format(estimate.high * scale)}]"
