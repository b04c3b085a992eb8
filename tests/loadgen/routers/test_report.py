"""What is lost with several routers: medians, ranges, points, and the document."""

from __future__ import annotations

from io import StringIO

import msgspec
import pytest
from rich.console import Console

from loadgen.demo.measuring import Measured
from loadgen.routers.report import WorkloadRuns, document, hit_rate_lost, table
from loadgen.routers.workloads import demo_readers
from tests.loadgen.demo.runs import run


def runs(**settings: list[float | None]) -> dict[str, list[Measured]]:
    return {name: [run(hit_rate=rate) for rate in rates] for name, rates in settings.items()}


def results(**settings: list[float | None]) -> list[WorkloadRuns]:
    return [WorkloadRuns(demo_readers([1], 20.0), runs(**settings))]


def test_what_is_lost_is_the_difference_of_medians_in_points() -> None:
    found = runs(one=[0.5, 0.9, 0.6], shared=[0.59, 0.1, 0.7], private=[0.7, 0.7, 0.2])
    assert hit_rate_lost(found, "shared") == pytest.approx(1.0)
    assert hit_rate_lost(found, "private") == pytest.approx(-10.0)
    assert hit_rate_lost(found, "one") == 0


def test_nothing_is_compared_with_a_run_that_has_no_hit_rate() -> None:
    assert hit_rate_lost(runs(one=[0.5], shared=[None]), "shared") is None
    assert hit_rate_lost(runs(one=[0.5, None], shared=[0.5]), "shared") is None
    assert hit_rate_lost(runs(shared=[0.5]), "shared") is None


def test_the_table_has_medians_ranges_and_the_points_that_are_lost() -> None:
    console = Console(file=StringIO(), width=160)
    console.print(table(results(one=[0.5, 0.9, 0.6], shared=[0.4, 0.6, 0.5]), 3))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    for part in ("demo", "one router", "3 routers, one tree", "60.0% (50.0%–90.0%)", "50.0% (40.0%–60.0%)", "+10.0"):
        assert part in text


def test_the_document_has_every_run_of_every_setting() -> None:
    read = msgspec.json.decode(document(results(one=[0.5, 0.9], shared=[])))
    (workload,) = read["workloads"]
    assert [found["hit_rate"] for found in workload["runs"]["one"]] == [0.5, 0.9]
    assert workload["runs"]["shared"] == []
    assert (workload["name"], workload["facts"]["arrivals"]) == ("demo", "poisson:1.7")
    assert read["machine"]["cores"]
