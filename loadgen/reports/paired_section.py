"""The page's part on paired differences.

Owns how a ComparisonReport is shown. Must never compute a difference, nor call one certain whose interval has zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from loadgen.reports import tables
from loadgen.reports.axes import ratio_axis
from loadgen.reports.figure import figure
from loadgen.reports.intervals import Interval, intervals
from loadgen.reports.markup import Markup, element, join
from loadgen.reports.plots import Line, legend
from loadgen.reports.rows import NOTHING, interval_text

if TYPE_CHECKING:
    from loadgen.compare.schema import Against, ComparisonReport, Estimate, PairedMetric, RunMetric


class _Unit(NamedTuple):
    label: str
    scale: float
    form: str


def section(comparison: ComparisonReport, colours: Mapping[str, int]) -> Markup:
    done, asked = comparison.repetitions_done, comparison.repetitions_asked
    said = f"{done} of {asked} repetitions" if done != asked else f"{done} repetition{'s' if done > 1 else ''}"
    return element(
        "section",
        element("h2", f"Paired differences from {comparison.baseline}"),
        element(
            "p",
            f"The same requests asked of each, over {said}; a difference is the value minus {comparison.baseline}'s. "
            f"Intervals of {comparison.confidence:.0%} confidence. Coloured where the interval leaves out zero.",
        ),
        *(element("p", note, class_="soft") for note in (comparison.interrupted, *comparison.notes) if note),
        _drawing(comparison, colours),
        *(_against(against) for against in comparison.against),
    )


def _drawing(comparison: ComparisonReport, colours: Mapping[str, int]) -> Markup:
    groups = _ratios(comparison, colours)
    if not groups:
        return Markup()
    title = f"Medians as multiples of {comparison.baseline}'s"
    rows = [row for _, found in groups for row in found]
    axis = ratio_axis("ratio of medians (log scale)", [value for row in rows for value in _known(row)])
    body = [
        tables.row(f"{name}, {row.of}", [axis.write(value) for value in _known(row)])
        for name, found in groups
        for row in found
    ]
    return figure(
        title,
        "Left of 1× is less than the baseline, which is better of times and worse of cached shares.",
        legend([Line(against.side, (), colours.get(against.side, 0)) for against in comparison.against]),
        intervals(title, groups, axis),
        tables.folded(["", "ratio", "low", "high"], body),
    )


def _ratios(comparison: ComparisonReport, colours: Mapping[str, int]) -> list[tuple[str, list[Interval]]]:
    """By metric, one of each side. A ratio of 0 has no place on a logarithmic axis, and is left to the table."""
    found: dict[str, list[Interval]] = {}
    for against in comparison.against:
        for metric in against.requests:
            ratio = metric.median_ratio
            if ratio.value is None or ratio.value <= 0 or (ratio.low is not None and ratio.low <= 0):
                continue
            name = _unit(metric.metric).label.partition(",")[0]
            row = Interval(against.side, ratio.value, ratio.low, ratio.high, colours.get(against.side, 0))
            found.setdefault(name, []).append(row)
    return list(found.items())


def _known(row: Interval) -> list[float]:
    return [value for value in (row.value, row.low, row.high) if value is not None]


def _against(against: Against) -> Markup:
    left_out = f"; {against.left_out.total:,} requests make no pair" if against.left_out.total else ""
    return join(
        element("h3", f"{against.side} against {against.baseline}"),
        element("p", f"{against.pairs:,} pairs{left_out}.", class_="soft"),
        tables.grid(
            ["single requests", "pairs", "mean difference", "median difference", "ratio of medians", "better in"],
            (_request_row(metric) for metric in against.requests),
        ),
        tables.grid(
            ["whole runs", against.baseline, against.side, "difference"], (_run_row(metric) for metric in against.runs)
        ),
    )


def _request_row(metric: PairedMetric) -> Markup:
    unit = _unit(metric.metric)
    cells: Iterable[str] = [
        f"{metric.pairs:,}",
        _difference(metric.mean_difference, unit, metric.better),
        _difference(metric.median_difference, unit, metric.better),
        interval_text(metric.median_ratio, 1.0, "{:.3g}×"),
        NOTHING if metric.better_share is None else f"{metric.better_share:.0%}",
    ]
    return tables.row(unit.label, cells)


def _run_row(metric: RunMetric) -> Markup:
    unit = _unit(metric.metric)
    plain = [
        NOTHING if v is None else unit.form.format(v * unit.scale).lstrip("+") for v in (metric.baseline, metric.side)
    ]
    return tables.row(unit.label, [*plain, _difference(metric.difference, unit, metric.better)])


def _difference(estimate: Estimate, unit: _Unit, better: str) -> Markup:
    good = None
    if estimate.certain and estimate.value is not None:
        good = (estimate.value > 0) == (better == "higher")
    class_ = {None: None, True: "best", False: "worse"}[good]
    word = {None: "", True: " better", False: " worse"}[good]
    return element("td", interval_text(estimate, unit.scale, unit.form) + word, class_=class_)


def _unit(metric: str) -> _Unit:
    """By the ending of the name, which says what it counts."""
    name, _, ending = metric.rpartition("_")
    label = metric.replace("_", " ")
    if ending == "s":
        return _Unit(_times(name) + ", ms", 1e3, "{:+,.2f}")
    if ending in ("share", "rate"):
        return _Unit(f"{label}, %", 100.0, "{:+,.2f}")
    if ending == "rps":
        return _Unit(f"{name}, req/s", 1.0, "{:+,.3f}")
    return _Unit(label, 1.0, "{:+,.4g}")


def _times(name: str) -> str:
    known = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "end to end", "sent": "from sending"}
    return " ".join(known.get(word, word) for word in name.split("_"))
