"""What the demo says of its runs: the marks in the table, and an honest sentence."""

from __future__ import annotations

import io

from rich.console import Console

from loadgen.demo.measuring import Measured, ended
from loadgen.demo.table import table, verdict
from tests.loadgen.demo.runs import run


def printed(runs: dict[str, Measured]) -> dict[str, str]:
    """The table's lines by the first words of each."""
    console = Console(file=io.StringIO(), width=160)
    console.print(table(runs))
    assert isinstance(console.file, io.StringIO)
    rows = [line.split("│") for line in console.file.getvalue().splitlines() if "│" in line]
    return {row[1].strip(): " | ".join(cell.strip() for cell in row[2:-1]) for row in rows}


def test_the_table_marks_the_best_of_each_row() -> None:
    lines = printed(
        {
            "a": run("a", 0.25, hit_rate=0.25, ttft_p50_s=0.9, ttft_p95_s=None),
            "b": run("b", 0.5, hit_rate=0.75, ttft_p50_s=0.3, ttft_p95_s=1.5),
            "c": run("c", 0.75, hit_rate=0.75, ttft_p50_s=0.3004, ttft_p95_s=1.2),
        }
    )
    assert lines["hit rate"] == "25.0% | 75.0% * | 75.0% *"
    assert lines["TTFT p50, ms"] == "900 | 300 * | 300 *"
    assert lines["TTFT p95, ms"] == "– | 1,500 | 1,200 *"
    assert lines["TPOT mean, ms"] == "20.00 | 20.00 | 20.00"
    assert lines["CPU cores busy here"] == "0.25 | 0.50 | 0.75"
    assert "goodput, req/s (TTFT ≤ 0.5 s, TPOT ≤ 50 ms)" in lines


def test_the_sentence_follows_the_figures_whichever_way_they_point() -> None:
    fast = run(hit_rate=0.9, ttft_p50_s=0.1, ttft_p95_s=0.5)
    slow = run("round_robin", hit_rate=0.3, ttft_p50_s=0.31, ttft_p95_s=0.51)
    runs = {"kv": fast, "round_robin": slow}
    assert verdict(runs, "kv", "round_robin") == (
        "kv against round_robin: hit rate 3.0x higher, TTFT p50 3.1x lower, TTFT p95 about the same."
    )
    assert verdict(runs, "round_robin", "kv") == (
        "round_robin against kv: hit rate 3.0x lower, TTFT p50 3.1x higher, TTFT p95 about the same."
    )
    blank = {"kv": fast, "round_robin": run(hit_rate=0.0, ttft_p50_s=None)}
    assert "hit rate not comparable, TTFT p50 not comparable" in verdict(blank, "kv", "round_robin")


def test_a_run_that_has_ended_is_told_in_a_line() -> None:
    said = ended("kv", run(requests=107, errors=2, duration_s=20.4, hit_rate=0.778, ttft_p50_s=0.055))
    assert said.split("kv  ")[1] == "107 requests in 20.4 s, 2 errors, hit rate 77.8%, TTFT p50 55 ms"
    assert "hit rate 0.0%" in ended("kv", run(hit_rate=None))
