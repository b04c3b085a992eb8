"""The table in a terminal: the best marked, foreign text harmless, and what is wrong said in words."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from loadgen.reports.figures import Setting
from loadgen.reports.schema import Happened, RunReport, Slo
from loadgen.reports.terminal import table, warnings
from tests.loadgen.reports.samples import failure, record, report


def _lines(reports: dict[str, RunReport]) -> list[str]:
    console = Console(file=io.StringIO(), width=160)
    console.print(table(reports))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def _row(reports: dict[str, RunReport], label: str) -> list[str]:
    (line,) = [line for line in _lines(reports) if line.lstrip("│ ").startswith(label)]
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_the_best_of_a_row_is_marked_whichever_way_is_better() -> None:
    reports = {"a": report([record(ttft=0.1, cached=10)]), "b": report([record(ttft=0.2, cached=50)])}
    assert _row(reports, "TTFT p50") == ["100.0 *", "200.0"]
    assert _row(reports, "hit rate") == ["10.0%", "50.0% *"]
    assert _row(reports, "requests  ") == ["1", "1"]


def test_equals_share_the_mark_and_unknown_figures_are_dashes() -> None:
    equal, worse, unknown = report([record()]), report([record(ttft=0.3)]), report([failure()])
    assert _row({"a": equal, "b": unknown, "c": worse, "d": equal}, "TTFT p50") == ["100.0 *", "–", "300.0", "100.0 *"]
    assert _row({"a": equal, "b": unknown, "c": equal}, "TTFT p50") == ["100.0", "–", "100.0"]


def test_a_single_report_has_no_marks() -> None:
    assert "*" not in "\n".join(_lines({"a": report([record()])}))


def test_rows_that_no_report_has_a_figure_for_are_left_out() -> None:
    shown = "\n".join(_lines({"a": report([record()])}))
    assert "regret" not in shown
    assert "regret" in "\n".join(_lines({"a": report([record()], Setting(regret_mean_s=0.1))}))
    assert "pooled lru" in "\n".join(_lines({"a": report([record()], Setting(ideals={"pooled_lru": 0.5}))}))


def test_the_slo_stands_with_its_figure() -> None:
    shown = "\n".join(_lines({"a": report([record()], Setting(slo=Slo(1.5, 0.03)))}))
    assert "TTFT ≤ 1.5 s, TPOT ≤ 30 ms" in shown


@pytest.mark.parametrize("reports", [{}, {"a": report([])}, {"a": report([failure()])}])
def test_there_is_a_table_whatever_happened(reports: dict[str, RunReport]) -> None:
    assert _lines(reports)


def test_foreign_text_does_not_act_as_markup() -> None:
    assert "[red]x[/]" in "\n".join(_lines({"[red]x[/]": report([record()])}))


def test_warnings_name_what_makes_a_run_doubtful() -> None:
    event = Happened(2.0, "kill r9", "no replica of this name")
    found = warnings({"a": report([failure()] * 3, Setting(events=(event, Happened(1.0, "add"))))})
    assert found == [
        "a is invalid: every request failed: nothing was measured",
        "a: 3 x HTTP 503",
        "a: kill r9 at 2.0 s: no replica of this name",
    ]
    assert warnings({"a": report([record()])}) == []
