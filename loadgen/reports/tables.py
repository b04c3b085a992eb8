"""Tables of the page.

Owns how rows become HTML. Must never compute a figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from loadgen.reports import rows
from loadgen.reports.markup import Markup, element, join
from loadgen.reports.schema import ReplicaFacts, RunReport
from loadgen.reports.statistics import ratio

MOST_REPLICAS = 100


def grid(head: Sequence[str], body: Iterable[str]) -> Markup:
    """`body`: finished rows. The frame scrolls sideways where the page is narrow."""
    top = element("thead", element("tr", *(element("th", text, scope="col") for text in head)))
    frame = {"class_": "wide", "tabindex": "0", "role": "region", "aria_label": head[0] or "table"}
    return element("div", element("table", top, element("tbody", *body)), **frame)


def row(head: str, cells: Iterable[str]) -> Markup:
    """Cells that are Markup are taken as finished <td>s."""
    finished = (cell if isinstance(cell, Markup) else element("td", cell) for cell in cells)
    return element("tr", element("th", head, scope="row"), *finished)


def folded(head: Sequence[str], body: Iterable[str], summary: str = "The data as a table") -> Markup:
    return element("details", element("summary", summary), grid(head, body))


def figures(reports: Mapping[str, RunReport]) -> Markup:
    """One column a report, the best of each row bold and starred; a single report's groups stand side by side."""
    groups = rows.groups(reports)
    if len(reports) == 1:
        return element("div", *(grid([group.name, ""], _lines(group, reports)) for group in groups), class_="columns")
    body: list[str] = []
    for group in groups:
        body.append(element("tr", element("th", group.name, colspan=len(reports) + 1, scope="rowgroup")))
        body += _lines(group, reports)
    return grid(["", *reports], body)


def _lines(group: rows.Group, reports: Mapping[str, RunReport]) -> list[Markup]:
    return [row(line.label, _cells(line, reports)) for line in group.rows]


def _cells(line: rows.Row, reports: Mapping[str, RunReport]) -> Iterable[Markup]:
    found = line.figures(reports)
    marks = rows.best(line.form, found, line.better)
    for text, mark in zip(rows.texts(line.form, found), marks, strict=True):
        yield element("td", f"{text} ★" if mark else text, class_="best" if mark else None)


def replicas(report: RunReport) -> Markup:
    """The busiest first; of very many only those."""
    ordered = sorted(report.replicas.items(), key=lambda item: _computed(item[1]), reverse=True)
    mean = sum(_computed(facts) for _, facts in ordered) / (len(ordered) or 1)
    head = [
        "replica",
        "requests",
        "errors",
        "prompt tokens",
        "computed",
        "of the mean",
        "hit rate",
        "TTFT p50, ms",
        "p99",
    ]
    body = [row(name, _replica(facts, mean)) for name, facts in ordered[:MOST_REPLICAS]]
    left_out = len(ordered) - len(body)
    note = element("p", f"And {left_out} less busy ones; the JSON document has them all.", class_="soft")
    return join(grid(head, body), note if left_out else Markup())


def counted(report: RunReport) -> Markup:
    """The replicas by their own counters, the busiest first; of very many only those."""
    computed = {name: each.prompt_tokens - each.cached_tokens for name, each in report.computed.items()}
    ordered = sorted(report.computed.items(), key=lambda item: computed[item[0]], reverse=True)
    mean = sum(computed.values()) / (len(computed) or 1)
    body = [
        row(
            name,
            [
                f"{each.requests:,}",
                f"{each.prompt_tokens:,}",
                f"{computed[name]:,}",
                f"{computed[name] / mean:.2f}" if mean else rows.NOTHING,
                *rows.texts("{:.1%}", [ratio(each.cached_tokens, each.prompt_tokens)]),
            ],
        )
        for name, each in ordered[:MOST_REPLICAS]
    ]
    return grid(["replica", "requests", "prompt tokens", "computed", "of the mean", "hit rate"], body)


def _replica(facts: ReplicaFacts, mean: float) -> list[str]:
    return [
        f"{facts.requests:,}",
        f"{facts.errors:,}",
        f"{facts.prompt_tokens:,}",
        f"{_computed(facts):,}",
        f"{_computed(facts) / mean:.2f}" if mean else rows.NOTHING,
        *rows.texts("{:.1%}", [facts.hit_rate]),
        *rows.texts("{:,.0f}", [_scaled(facts.ttft_p50_s), _scaled(facts.ttft_p99_s)]),
    ]


def _computed(facts: ReplicaFacts) -> int:
    return facts.prompt_tokens - facts.cached_tokens


def _scaled(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def words(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Terms and what they mean or are; empty ones are left out."""
    found = [(term, text) for term, text in pairs if text]
    return element("dl", *(join(element("dt", term), element("dd", text)) for term, text in found), class_="words")
