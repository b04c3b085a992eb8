"""What the plots of a page show, from records and timelines.

Owns the choice of points. Must never hand out more than a plot can show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loadgen.records import Record
from loadgen.reports.canvas import Mark
from loadgen.reports.plots import MAX_POINTS, Line
from loadgen.reports.schema import RunReport, Window
from loadgen.reports.statistics import percentile

PERCENTS = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)

Distributions = Mapping[str, Sequence[float]]
"""By name of the run, the values in rising order."""


def distributions(records: Mapping[str, Sequence[Record]]) -> dict[str, Distributions]:
    """TTFT, TPOT and end-to-end times of whole answers, in seconds."""
    good = {name: [record for record in its if not record.error] for name, its in records.items()}
    return {
        "ttft": {name: sorted(r.ttft for r in its if r.ttft is not None) for name, its in good.items()},
        "tpot": {name: sorted(r.tpot for r in its if r.tpot is not None) for name, its in good.items()},
        "e2e": {name: sorted(r.end - r.due for r in its) for name, its in good.items()},
    }


def cdf(ordered: Sequence[float]) -> list[tuple[float, float | None]]:
    """(value, share of values up to it), from share 0 on; of many values an even choice with the last."""
    if not ordered:
        return []
    count, kept = len(ordered), min(len(ordered), MAX_POINTS - 1)
    ranks = [(index + 1) * count // kept for index in range(kept)]
    return [(ordered[0], 0.0), *((ordered[rank - 1], rank / count) for rank in ranks)]


def cdf_lines(found: Distributions) -> list[Line]:
    return [Line(name, cdf(values), colour) for colour, (name, values) in enumerate(found.items())]


def cdf_table(found: Distributions) -> list[tuple[float, list[float | None]]]:
    """A row for each of PERCENTS: the values of every run."""
    return [(percent, [percentile(values, percent) for values in found.values()]) for percent in PERCENTS]


def window_line(label: str, report: RunReport, field: str, colour: int, dashed: bool = False) -> Line:
    """One figure of the windows, each drawn in its window's middle."""
    half = report.timeline.window_s / 2
    points = [(window.start_s + half, _value(window, field)) for window in report.timeline.windows]
    return Line(label, points, colour, dashed)


def _value(window: Window, field: str) -> float | None:
    found: float | None = getattr(window, field)
    return found


def marks(reports: Mapping[str, RunReport]) -> list[Mark]:
    """The events of all runs by time, numbered; what happened in several within the same second is one mark."""
    found: dict[tuple[int, str], float] = {}
    for report in reports.values():
        for event in report.events:
            found.setdefault((round(event.at_s), event.what), event.at_s)
    ordered = sorted((at_s, what) for (_, what), at_s in found.items())
    return [Mark(at_s, str(index), f"{what}, at {at_s:.1f} s") for index, (at_s, what) in enumerate(ordered, 1)]
