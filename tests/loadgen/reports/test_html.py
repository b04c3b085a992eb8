"""The page: whole, self-contained, safe, bounded, and there whatever happened."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.compare.schema import Against, ComparisonReport, Estimate, LeftOut, PairedMetric, RunMetric, Side
from loadgen.records import Record
from loadgen.reports.figures import Setting, run_report
from loadgen.reports.html import page, write_html
from loadgen.reports.schema import Computed, Happened, RunReport
from tests.loadgen.reports.reading import Page
from tests.loadgen.reports.samples import any_record, failure, plan, record, report, target

HOSTILE = "<script>alert('x')</script>&\"'><img src=x onerror=y>"


def _many(count: int, replicas: int = 4, seed: int = 1) -> list[Record]:
    draw = random.Random(seed)
    return [
        record(
            due=draw.uniform(0, 100),
            ttft=draw.lognormvariate(-2, 1),
            tpot=draw.uniform(0.01, 0.05),
            tokens=3,
            prompt=100,
            cached=draw.randrange(100),
            replica=f"r{draw.randrange(replicas)}",
        )
        for _ in range(count)
    ]


def _page(records: Sequence[Record], setting: Setting | None = None) -> Page:
    return Page(page({"kv": report(records, setting)}, {"kv": records}))


def test_every_plot_has_a_title_axes_with_units_a_legend_and_its_data() -> None:
    found = _page([*_many(200), failure(due=50.0, end=51.0)])
    # Three distributions; TTFT, requests in flight, hit rate and errors over time; the heat map.
    assert found.count("figure") == found.count("figcaption") == 8
    labels = [value for tag, name, value in found.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == 8
    assert all(labels)
    assert found.count("details") == 8 + 1  # the plan's parameters are the ninth
    legends = [value for _, name, value in found.attributes if name == "class" and value == "legend"]
    assert len(legends) == 8
    for axis in ("TTFT (log scale)", "requests up to it, %", "time since the run's start, s", "TTFT, ms", "replica"):
        assert axis in found.words


def test_the_page_asks_for_nothing_from_outside() -> None:
    source = page({"kv": report(_many(50))}, {"kv": _many(50)})
    found = Page(source)
    assert found.count("script") == found.count("link") == found.count("img") == found.count("iframe") == 0
    assert not [
        name for _, name, _ in found.attributes if name in ("src", "href", "srcset", "action") or name[:2] == "on"
    ]
    assert re.findall(r"https?://[^\s<\"']+", source) == ["http://127.0.0.1:8000"]  # what was asked, as text
    assert "url(" not in source
    assert "@import" not in source
    said = [value for tag, name, value in found.attributes if (tag, name) == ("meta", "content")]
    assert said[-1] == "default-src 'none'; style-src 'unsafe-inline'"


def test_whatever_comes_from_outside_is_text() -> None:
    records = [record(replica=HOSTILE), failure(error=HOSTILE), *_many(5)]
    setting = Setting(events=(Happened(0.1, HOSTILE, HOSTILE),), ideals={HOSTILE: 0.5})
    asked = plan(workload=HOSTILE)
    asked.parameters[HOSTILE] = HOSTILE
    reports = {HOSTILE: run_report(target(HOSTILE, model=HOSTILE), asked, records, setting)}
    reports["b"] = reports[HOSTILE]
    found = Page(page(reports, {HOSTILE: records, "b": records}, _comparison(HOSTILE)))
    assert found.count("script") == found.count("img") == 0
    assert not [name for _, name, _ in found.attributes if name == "onerror"]
    assert HOSTILE in found.text


@pytest.mark.parametrize(
    "records",
    [
        [],
        [failure()],
        [failure(end=0.0)] * 30,
        [record()],
        [record(tokens=1, prompt=0, replica="")],
        [record(replica="") for _ in range(20)],
        [record(ttft=0.0, tpot=0.0)] * 3,
    ],
    ids=["empty", "failed", "failed at once", "one", "one bare", "without replicas", "in no time"],
)
def test_there_is_a_page_whatever_happened(records: list[Record]) -> None:
    found = _page(records)
    assert found.count("h2") == 6
    assert "nan" not in found.text.lower().split()
    assert "inf" not in found.text.lower().split()


def test_a_page_of_no_runs_says_so() -> None:
    assert "There is no run to report." in Page(page({}, {})).words


def test_a_report_whose_records_are_gone_is_still_shown() -> None:
    found = Page(page({"kv": report(_many(20))}, {}))
    assert found.words.count("Nothing was measured.") == 3


@settings(max_examples=15, deadline=None)
@given(st.lists(any_record(), max_size=8), st.lists(any_record(), max_size=8))
def test_any_records_make_a_balanced_page_of_finite_numbers(first: list[Record], second: list[Record]) -> None:
    reports = {"a": report(first), "b": report(second)}
    found = Page(page(reports, {"a": first, "b": second}))
    drawn = [
        value for tag, name, value in found.attributes if tag in ("path", "rect", "line", "circle") and name != "class"
    ]
    assert not [value for value in drawn if "nan" in value or "inf" in value]


def test_the_page_does_not_grow_with_the_records() -> None:
    small, large = _many(2_000), _many(20_000)
    sizes = [len(page({"kv": report(records)}, {"kv": records})) for records in (small, large)]
    assert sizes[1] < sizes[0] * 1.1
    assert sizes[1] < 400_000


def test_the_page_does_not_grow_with_the_fleet_either() -> None:
    records = _many(5_000, replicas=1_000)
    found = _page(records, Setting(window_s=0.1))
    cells = [value for tag, name, value in found.attributes if tag == "rect" and name == "fill-opacity"]
    assert len(cells) <= 40 * 80 + 6
    left_out = len({record.replica for record in records}) - 100
    assert f"And {left_out} less busy ones; the JSON document has them all." in found.words


def test_several_runs_share_plots_and_axes() -> None:
    names = ["kv", "least_load", "sticky"]
    records = {name: _many(100, seed=seed) for seed, name in enumerate(names)}
    found = Page(page({name: report(its, name=name) for name, its in records.items()}, records))
    # Three distributions, TTFT p50 and p99, requests in flight, hit rate; a heat map each.
    assert found.count("figure") == 3 + 4 + 3
    assert "Time to first token, p99" in found.words
    for name in names:
        assert found.words.count(name) >= 10


def test_events_are_marks_with_a_list() -> None:
    setting = Setting(events=(Happened(40.0, "kill r1"), Happened(60.0, "add")))
    reports = {"a": report(_many(50), setting), "b": report(_many(50, seed=2), setting)}
    found = Page(page(reports, {}))
    assert "kill r1, at 40.0 s" in found.words
    marks = [value for _, name, value in found.attributes if name == "class" and value == "mark"]
    assert len(marks) == 2 * (4 + 2)  # over time, and on the heat maps


def test_an_invalid_run_says_so_first() -> None:
    found = _page([record(lag=0.5, ttft=0.6)])
    where = found.text.index("kv is invalid: the client itself was late")
    assert where < found.text.index("TTFT p50")


def _comparison(side: str) -> ComparisonReport:
    sure, unsure = Estimate(-0.12, -0.15, -0.09, "t", 5), Estimate(0.001, -0.002, 0.004, "t", 5)
    ratio = Estimate(0.5, 0.45, 0.55, "t", 5)
    reports = report([record()])
    return ComparisonReport(
        baseline="b",
        sides=(Side("b", "policy", "b", True), Side(side, "policy", side, True)),
        against=(
            Against(
                side=side,
                baseline="b",
                repetitions=5,
                pairs=1234,
                left_out=LeftOut(failed_on_side=3),
                requests=(
                    PairedMetric("ttft_s", "lower", 1234, sure, sure, ratio, 0.8),
                    PairedMetric("tpot_s", "lower", 1234, unsure, unsure, Estimate(None)),
                    PairedMetric("cached_share", "higher", 1234, sure, sure, Estimate(0.0, 0.0, 0.0)),
                ),
                runs=(RunMetric("hit_rate", "higher", 0.3, 0.6, Estimate(0.3)),),
            ),
        ),
        plan=reports.plan,
        slo=reports.slo,
        repetitions_asked=5,
        repetitions_done=4,
        interrupted="ended by Ctrl-C",
        notes=("b was used as it is",),
    )


def test_paired_differences_stand_with_their_intervals() -> None:
    reports: dict[str, RunReport] = {name: report(_many(50), name=name) for name in ("b", "kv")}
    found = Page(page(reports, {}, _comparison("kv")))
    assert "-120.00 [-150.00, -90.00] better" in found.words  # ms; the interval leaves out zero
    assert "+1.00 [-2.00, +4.00]" in found.words  # it does not: no verdict
    assert "-12.00 [-15.00, -9.00] worse" in found.words  # a share: more is better
    assert "0.5× [0.45×, 0.55×]" in found.words
    assert "1,234 pairs; 3 requests make no pair." in found.words
    for said in ("ended by Ctrl-C", "b was used as it is", "+30.00", "Medians as multiples of b's"):
        assert said in found.words
    assert "4 of 5 repetitions" in found.text


def test_the_page_is_written_as_one_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_html(path, {"kv": report(_many(10))}, {"kv": _many(10)})
    assert Page(path.read_text("utf-8")).count("h1") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_replicas_that_no_answer_named_are_shown_by_their_own_counters() -> None:
    records = [record(replica="")]
    computed = {"r0": Computed(1, 400, 100), "r1": Computed(0, 0, 0)}
    words = " ".join(_page(records, Setting(computed=computed)).words)
    assert "No answer named the replica that gave it. By the replicas' own counters." in words
    assert "r0 1 400 300 2.00 25.0%" in words
