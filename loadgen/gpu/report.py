"""What `make gpu-bench` found: rows in base units, verdicts on the goals, one table, one JSON document.

Owns the schema, the goals and every way of showing them. Must never measure anything or import torch, and never round
on the way into the JSON form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from rich.markup import escape
from rich.table import Table

SCHEMA = "radixgate.gpu_bench/1"

COPY, READ, GEMM = "copy bandwidth", "read bandwidth", "GEMM peak, bf16"


class Goal(msgspec.Struct, frozen=True):
    """Something to be reached by every row that says how near it came. Fractions, but for `unit`."""

    key: str
    text: str
    target: float
    at_most: bool = False
    unit: str = ""


GOALS = (
    Goal("decode", "decode attention of ≥ 1 GB of KV: of the bandwidth ceiling", 0.75),
    Goal("decode_single", "decode attention, bs 1, 32k: of the bandwidth ceiling", 0.60),
    Goal("prefill", "prefill attention, causal, 8k", 300e12, unit="FLOP/s"),
    Goal("prefill_cudnn", "prefill attention, causal, 8k: of SDPA cuDNN", 0.60),
    Goal("step", "whole decode steps, bs 1/32/128, ctx 1–2k: of the bandwidth roofline", 0.65),
    Goal("long", "tok/s at bs 1, ctx 32k: of that at 1k", 0.75),
    Goal("wall", "wall time of a decode step: of its graph's replay", 1.10, at_most=True),
)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement. `value` is in `unit` (B/s, FLOP/s, tok/s, s or ×), `ceiling` too; `ratio` is their quotient.

    `seconds`: the median time of what was measured. `beside`: what others reach, in `unit`. `goals`: for each goal's
    key, how near this row came. `facts`: the case in numbers. `note`: what a reader must know.
    """

    what: str
    value: float
    unit: str
    seconds: float | None = None
    ceiling: float | None = None
    ratio: float | None = None
    beside: dict[str, float] = {}
    goals: dict[str, float] = {}
    facts: dict[str, float | str] = {}
    note: str = ""


class Failure(msgspec.Struct, frozen=True):
    what: str
    why: str


class Skipped(msgspec.Struct, frozen=True):
    what: str
    why: str


class Section(msgspec.Struct):
    """A group of rows, and what was not measured of it, with reasons. `seconds`: what it took in all."""

    name: str
    title: str
    seconds: float = 0.0
    rows: list[Row] = []
    skipped: list[Skipped] = []
    failures: list[Failure] = []


class Ceilings(msgspec.Struct, frozen=True):
    """What the card was measured to do: bytes a second and FLOP a second."""

    copy: float | None = None
    read: float | None = None
    gemm: float | None = None

    @property
    def bandwidth(self) -> float | None:
        """The larger of copying (read and written bytes) and reading: no ratio flatters itself with a slow ceiling."""
        return max((rate for rate in (self.copy, self.read) if rate is not None), default=None)


class Verdict(msgspec.Struct, frozen=True):
    """A goal, and the row that is furthest from it; `measured` is None where no row says anything about it."""

    key: str
    text: str
    target: float
    at_most: bool
    unit: str
    measured: float | None = None
    where: str = ""
    rows: int = 0
    rows_met: int = 0

    @property
    def met(self) -> bool | None:
        return None if self.measured is None else self.rows == self.rows_met


class Report(msgspec.Struct, kw_only=True):
    schema: str = SCHEMA
    smoke: bool
    machine: dict[str, str]
    seconds: float
    ceilings: Ceilings
    sections: list[Section]
    verdicts: list[Verdict]

    @property
    def failed(self) -> bool:
        return any(section.failures for section in self.sections)


class NotAReport(ValueError):
    """The file is no report of this schema; the message says what it is."""


def row(what: str, value: float, unit: str, *, ceiling: float | None = None, note: str = "", **more: object) -> Row:
    """A row with its ratio. `more`: the other fields of Row."""
    ratio = None if ceiling is None else value / ceiling
    return msgspec.convert(
        {"what": what, "value": value, "unit": unit, "ceiling": ceiling, "ratio": ratio, "note": note, **more}, Row
    )


def ceilings_of(rows: Iterable[Row]) -> Ceilings:
    rates = {one.what: one.value for one in rows}
    return Ceilings(rates.get(COPY), rates.get(READ), rates.get(GEMM))


def verdicts_on(rows: Sequence[Row]) -> list[Verdict]:
    return [
        _verdict(goal, [(one.goals[goal.key], one.what) for one in rows if goal.key in one.goals]) for goal in GOALS
    ]


def _verdict(goal: Goal, found: list[tuple[float, str]]) -> Verdict:
    fixed = (goal.key, goal.text, goal.target, goal.at_most, goal.unit)
    if not found:
        return Verdict(*fixed)
    measured, where = max(found) if goal.at_most else min(found)
    met = sum(value <= goal.target if goal.at_most else value >= goal.target for value, _ in found)
    return Verdict(*fixed, measured, where, len(found), met)


def write_json(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)))


def read_json(path: Path) -> Report:
    """Raises NotAReport, or OSError."""
    try:
        schema = msgspec.json.decode(path.read_bytes(), type=dict[str, object]).get("schema")
        if schema != SCHEMA:
            raise NotAReport(f"{path} has the schema {schema!r}, not {SCHEMA!r}")
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except msgspec.DecodeError as error:
        raise NotAReport(f"{path} is no report of gpu_bench: {error}") from None


# What is shown ----------------------------------------------------------------------------------------------------

COLUMNS = ("", "time", "figure", "of ceiling, goal", "beside: theirs (ours / theirs)", "note")
SMOKE_TITLE = "SMOKE TEST: tiny shapes on a CPU. It shows that the command works; no figure means anything."


def title(report: Report) -> str:
    if report.smoke:
        return SMOKE_TITLE
    return ", ".join(f"{name} {value}" for name, value in report.machine.items())


def lines(report: Report) -> Iterator[tuple[str, list[list[str]]]]:
    """The table's content: for each section its title and its rows of cells, one for each of COLUMNS."""
    for section in report.sections:
        cells = [_cells(one) for one in section.rows]
        cells += [[failure.what, "", "FAILED", "", "", failure.why] for failure in section.failures]
        cells += [[skipped.what, "", "not measured", "", "", skipped.why] for skipped in section.skipped]
        yield f"{section.title} ({section.seconds:.0f} s)", cells
    yield "Goals, by the row that is furthest from each", [_verdict_cells(verdict) for verdict in report.verdicts]


def _cells(one: Row) -> list[str]:
    ratio = "" if one.ratio is None else f"{one.ratio:.1%}"
    beside = " · ".join(
        f"{name} {quantity(value, one.unit)} ({one.value / value:.2f})" for name, value in one.beside.items()
    )
    seconds = "" if one.seconds is None else quantity(one.seconds, "s")
    return [one.what, seconds, quantity(one.value, one.unit), ratio, beside, one.note]


def _verdict_cells(verdict: Verdict) -> list[str]:
    target = f"{'≤' if verdict.at_most else '≥'} {_of(verdict, verdict.target)}"
    if verdict.measured is None:
        return [verdict.text, "", "not measured", target, "", ""]
    reached = "reached" if verdict.met else "MISSED"
    note = f"{verdict.rows_met} of {verdict.rows} rows; furthest: {verdict.where}"
    return [verdict.text, "", _of(verdict, verdict.measured), target, reached, note]


def _of(verdict: Verdict, value: float) -> str:
    return quantity(value, verdict.unit) if verdict.unit else f"{value:.1%}"


PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
SMALL = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def quantity(value: float, unit: str) -> str:
    """Three significant digits with the unit's prefix: 4.31 TB/s, 12.3 ms, 6,511 tok/s."""
    if unit == "s":
        size, name = next(((size, name) for size, name in SMALL if value >= size), SMALL[-1])
        return f"{_digits(value / size)} {name}"
    if unit in ("B/s", "FLOP/s"):
        for size, prefix in PREFIXES:
            if value >= size:
                return f"{_digits(value / size)} {prefix}{unit}"
    return f"{_digits(value)} {unit}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(report: Report) -> Table:
    grid = Table(title=title(report), title_justify="left")
    for index, column in enumerate(COLUMNS):
        grid.add_column(column, justify="right" if 1 <= index <= 3 else "left", overflow="fold")
    for heading, cells in lines(report):
        grid.add_section()
        grid.add_row(f"[bold]{escape(heading)}[/]")
        for row_cells in cells:
            grid.add_row("  " + escape(row_cells[0]), *map(escape, row_cells[1:]))
    return grid


def markdown(report: Report) -> str:
    """The same table, to paste into BENCHMARKS.md."""
    text = [title(report), ""]
    for heading, cells in lines(report):
        text += [f"**{heading}**", "", f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|---:|---|---|"]
        text += [f"| {' | '.join(cell.replace('|', '/') for cell in row_cells)} |" for row_cells in cells]
        text.append("")
    return "\n".join(text)
