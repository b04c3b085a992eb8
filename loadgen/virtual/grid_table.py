"""A grid's results as Markdown.

Owns the layout only: one table a trace, a row a cell, a column a policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from loadgen.virtual.grid import Cell
from loadgen.virtual.report import PolicyFigures, SimulationReport

Figure = Callable[[PolicyFigures], float | None]


def tables(results: Sequence[tuple[Cell, SimulationReport]]) -> Iterator[str]:
    """Lines. Of every row, the best mean TTFT is bold; full-model cells get a second line with TPOT and good share."""
    traces = dict.fromkeys(cell.trace for cell, _ in results)
    for trace in traces:
        yield f"**{trace.name}**"
        yield ""
        yield from _table([result for result in results if result[0].trace == trace])
        yield ""


def _table(results: Sequence[tuple[Cell, SimulationReport]]) -> Iterator[str]:
    policies = list(results[0][1].policies)
    rates = len({cell.rate_scale for cell, _ in results}) > 1
    full = any(found.tpot_mean_s is not None for _, report in results for found in report.policies.values())
    yield "| tokens | N | " + ("rate | " if rates else "") + "pooled LRU | " + " | ".join(policies) + " |"
    yield "|---" * (3 + rates + len(policies)) + "|"
    for cell, report in results:
        head = f"| {cell.capacity_tokens / 1e6:g}M | {cell.replicas} | " + (f"{cell.rate_scale:g} | " if rates else "")
        pooled = f"{report.ideal['pooled_lru']:.3f} | "
        yield head + pooled + " | ".join(_cells(report.policies, full)) + " |"


def _cells(policies: Mapping[str, PolicyFigures], full: bool) -> Iterator[str]:
    best = min((found.ttft_mean_s for found in policies.values() if found.ttft_mean_s is not None), default=None)
    for found in policies.values():
        mean = f"{found.ttft_mean_s:.2f}" if found.ttft_mean_s is not None else "–"
        mean = f"**{mean}**" if found.ttft_mean_s == best else mean
        text = f"{mean} / {_number(found.ttft_p99_s)} · {_number(found.hit_rate, 3)}"
        if full:
            tpot = None if found.tpot_mean_s is None else found.tpot_mean_s * 1e3
            text += f"<br>{_number(tpot)} ms · {_number(found.good, 3)}"
        yield text


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
