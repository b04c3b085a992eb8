"""The report as one page that needs nothing else: no network, no script, no second file.

Owns what stands on the page and in what order. Must never grow with the number of records, nor let a text from outside
into it unescaped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.records import Record
from loadgen.reports import (
    axes,
    latency_section,
    paired_section,
    plots,
    replicas_section,
    series,
    tables,
    time_section,
)
from loadgen.reports.markup import Markup, element
from loadgen.reports.rows import NOTHING
from loadgen.reports.schema import RunReport
from loadgen.reports.style import STYLE
from loadgen.reports.terminal import warnings

if TYPE_CHECKING:
    from loadgen.compare.schema import ComparisonReport

_MOST_WARNINGS = 30
_MOST_URLS = 20
_LONGEST_TEXT = 300
_LONGEST_PARAMETERS = 20_000

_ONLY_ITSELF = "default-src 'none'; style-src 'unsafe-inline'"
"""The browser's word that the page fetches nothing and runs nothing."""

_MEANINGS = (
    (
        "TTFT",
        "Time to first token, from when the schedule wanted the request sent, so that a late client cannot flatter the "
        "server; from sending where it says so.",
    ),
    ("TPOT", "Time per output token after the first, of a request: (last token - first token) / (tokens - 1)."),
    ("ITL", "Gap between two chunks of an answer, over all gaps of all requests."),
    ("end to end", "From when a request was due to its last token."),
    ("good, goodput", "Requests that met both limits of the SLO. An answer of one token has no TPOT to miss."),
    ("hit rate", "Cached prompt tokens / prompt tokens, as the server reported them."),
    (
        "one cache for all",
        "What it would have hit: infinite, which no routing exceeds, or of the whole fleet's size under LRU, which "
        "another eviction may.",
    ),
    ("balance", "The busiest replica's share / the mean of the fleet; 1 is even."),
    (
        "regret",
        "Predicted TTFT on the chosen replica - on the best one, mean over receipts. A policy that predicts alike has "
        "little of it by construction.",
    ),
    ("lag", "How late the client itself sent. A run with too much of it is invalid."),
)


def write_html(
    path: Path,
    reports: Mapping[str, RunReport],
    records: Mapping[str, Sequence[Record]],
    comparison: ComparisonReport | None = None,
) -> None:
    """`reports` and `records` by the same names, in the order to show them in; `comparison`'s sides are among these.

    Raises OSError where `path` cannot be written.
    """
    path.write_bytes(page(reports, records, comparison).encode("utf-8", "replace"))


def page(
    reports: Mapping[str, RunReport],
    records: Mapping[str, Sequence[Record]],
    comparison: ComparisonReport | None = None,
) -> str:
    workloads = dict.fromkeys(report.plan.workload for report in reports.values())
    title = " · ".join(", ".join(map(_short, names)) for names in (reports, workloads) if names) or "no runs"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_ONLY_ITSELF),
        element("title", f"RadixGate: {title}"),
        element("style", Markup(STYLE)),
    )
    main = element("main", *_header(title, reports), *_parts(reports, records, comparison))
    return "<!doctype html>\n" + element("html", head, element("body", main), lang="en") + "\n"


def _parts(
    reports: Mapping[str, RunReport],
    records: Mapping[str, Sequence[Record]],
    comparison: ComparisonReport | None,
) -> Iterable[Markup]:
    if not reports:
        yield element("p", "There is no run to report.")
        return
    marks = series.marks(reports)
    yield element("div", *_cards(reports), class_="runs")
    if comparison is not None:
        yield paired_section.section(comparison, {name: colour for colour, name in enumerate(reports)})
    yield latency_section.section(reports, {name: records.get(name, ()) for name in reports})
    yield time_section.section(reports, marks)
    yield replicas_section.section(reports, time_section.clock(reports), marks)
    yield element("section", element("h2", "All figures"), tables.figures(reports), class_="figures")
    yield element("section", element("h2", "What was asked, and of whom"), *_asked(reports))
    yield element("section", element("h2", "What the figures mean"), tables.words(_MEANINGS))


def _header(title: str, reports: Mapping[str, RunReport]) -> Iterable[Markup]:
    yield element("p", "RadixGate load test", class_="brand")
    yield element("h1", title)
    for said in dict.fromkeys(_in_short(report) for report in reports.values()):
        yield element("p", said, class_="soft")
    found = warnings(reports)
    if not found:
        return
    lines = [element("li", _short(line)) for line in found[:_MOST_WARNINGS]]
    if len(found) > len(lines):
        lines.append(element("li", f"and {len(found) - len(lines)} more"))
    yield element("div", element("strong", "Read first"), element("ul", *lines), class_="warning", role="note")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"


def _in_short(report: RunReport) -> str:
    plan = report.plan
    pace = f"{plan.closed_loop} sessions at once" if plan.closed_loop is not None else "open loop"
    return (
        f"Planned requests: {plan.requests:,} in {plan.sessions:,} sessions over {plan.duration_s:,.6g} s, {pace}, "
        f"seed {plan.seed}, model {_short(report.target.model)}."
    )


def _cards(reports: Mapping[str, RunReport]) -> Iterable[Markup]:
    for colour, (name, report) in enumerate(reports.items()):
        head = element("h3", plots.swatch(colour), element("span", name)) if len(reports) > 1 else Markup()
        yield element("div", head, element("dl", *_tiles(report), class_="tiles"), class_="run")


def _tiles(report: RunReport) -> Iterable[Markup]:
    found = report.figures
    yield _tile("TTFT p50", found.ttft_p50_s, axes.seconds)
    yield _tile("TTFT p99", found.ttft_p99_s, axes.seconds)
    yield _tile("TPOT p50", found.tpot_p50_s, axes.seconds)
    yield _tile("hit rate", found.hit_rate, "{:.1%}".format)
    yield _tile("good under SLO", found.good, "{:.1%}".format)
    yield _tile("goodput", found.goodput_rps, _rate, " req/s")
    yield _tile("answered", found.achieved_rps, _rate, " req/s")
    yield _tile("errors", found.errors, "{:,}".format, f" of {found.requests:,}")


def _rate(value: float) -> str:
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _tile(label: str, value: float | None, write: Callable[[float], str], unit: str = "") -> Markup:
    text = NOTHING if value is None else write(value)
    return element("div", element("dt", label), element("dd", text, element("small", unit) if unit else ""))


def _asked(reports: Mapping[str, RunReport]) -> Iterable[Markup]:
    for name, report in reports.items():
        target = report.target
        yield element("h3", name)
        yield tables.words(
            (
                ("server", target.description),
                ("URLs", ", ".join(map(_short, target.urls[:_MOST_URLS]))),
                ("model", target.model),
                ("replicas", "" if target.replicas is None else f"{target.replicas:,}"),
                ("cache of each", "" if target.capacity_tokens is None else f"{target.capacity_tokens:,} tokens"),
                ("SLO", f"TTFT ≤ {axes.seconds(report.slo.ttft_s)}, TPOT ≤ {axes.seconds(report.slo.tpot_s)}"),
            )
        )
    for shown in dict.fromkeys(_parameters(report) for report in reports.values()):
        yield element("details", element("summary", "The plan's parameters"), element("pre", shown))


def _parameters(report: RunReport) -> str:
    plan = report.plan
    everything = {"workload": plan.workload, "seed": plan.seed, "duration_s": plan.duration_s, **plan.parameters}
    text = json.dumps(everything, indent=2, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_PARAMETERS else text[:_LONGEST_PARAMETERS] + "\n…"
