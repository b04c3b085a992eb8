"""The figures: hand-made records with known answers, the JSON form, the marks in the table, and an honest sentence."""

from __future__ import annotations

import io
import statistics

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from loadgen.fleet import FleetParameters
from loadgen.records import Record
from loadgen.report import (
    Comparison,
    PolicyReport,
    Slo,
    WorkloadReport,
    failures,
    summarise,
    table,
    verdict,
)
from loadgen.reports.statistics import percentile
from loadgen.workloads import RagParameters

SLO = Slo(ttft_ms=500, tpot_ms=50)


def record(
    ttft: float = 0.1,
    tpot: float = 0.02,
    tokens: int = 11,
    prompt: int = 100,
    cached: int = 0,
    replica: str = "r0",
    due: float = 0.0,
    lag: float = 0.0,
    error: str = "",
) -> Record:
    """A request due at `due` whose first token came `ttft` later, then one every `tpot` seconds."""
    times = tuple(due + ttft + tpot * index for index in range(tokens))
    return Record(
        session=0,
        turn=0,
        document=0,
        due=due,
        sent=due + lag,
        end=times[-1],
        token_times=times,
        status=200,
        error=error,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=tokens,
        replica=replica,
    )


def report(**changes: object) -> PolicyReport:
    return msgspec.structs.replace(summarise([record(cached=50)], SLO, 2), **changes)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2))
def test_percentiles_agree_with_the_standard_library(values: list[float]) -> None:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    for percent in (1, 50, 95, 99):
        assert percentile(values, percent) == pytest.approx(cuts[percent - 1], abs=1e-6)
    assert percentile(values, 0) == min(values)
    assert percentile(values, 100) == max(values)


def test_percentiles_of_little() -> None:
    assert percentile([], 50) is None
    assert percentile([7.0], 99) == 7.0
    assert percentile([3.0, 1.0], 50) == 2.0


def test_times_of_a_known_run() -> None:
    records = [record(ttft=(index + 1) / 100, due=index) for index in range(101)]
    seen = summarise(records, SLO, 1)
    assert (seen.requests, seen.errors) == (101, 0)
    assert seen.ttft_p50_ms == pytest.approx(510)
    assert seen.ttft_p95_ms == pytest.approx(960)
    assert seen.ttft_p99_ms == pytest.approx(1000)
    assert seen.tpot_ms == pytest.approx(20)
    assert seen.tpot_p50_ms == pytest.approx(20)
    assert seen.itl_p99_ms == pytest.approx(20)
    assert seen.e2e_p50_ms == pytest.approx(710)
    assert seen.duration_s == pytest.approx(100 + 1.01 + 0.2)
    # TTFTs of 10, 20, …, 500 ms are good: 50 requests.
    assert seen.goodput_rps == pytest.approx(50 / seen.duration_s)


def test_hit_rate_weighs_tokens_not_requests() -> None:
    seen = summarise([record(prompt=900, cached=900), record(prompt=100, cached=0)], SLO, 1)
    assert seen.hit_rate == pytest.approx(0.9)
    assert (seen.prompt_tokens, seen.cached_tokens) == (1000, 900)


def test_balance_counts_replicas_that_served_nothing() -> None:
    records = [record(prompt=300, replica="r0"), record(prompt=100, replica="r1"), record(prompt=100, replica="r1")]
    seen = summarise(records, SLO, 4)
    assert seen.balance == pytest.approx(300 / (500 / 4))
    assert seen.balance_requests == pytest.approx(2 / (3 / 4))
    assert seen.replicas == {"r0": 1, "r1": 2}


def test_balance_is_of_computed_tokens() -> None:
    records = [record(prompt=300, cached=200, replica="r0"), record(prompt=100, replica="r1")]
    assert summarise(records, SLO, 2).balance == pytest.approx(1.0)


def test_goodput_wants_both_the_first_token_and_the_pace() -> None:
    records = [
        record(),
        record(ttft=0.6),
        record(tpot=0.06),
        record(error="HTTP 500"),
        record(tokens=1, tpot=0),
    ]
    seen = summarise(records, SLO, 1)
    assert seen.goodput_rps * seen.duration_s == pytest.approx(2)


def test_a_late_client_counts_against_the_server_and_is_shown() -> None:
    seen = summarise([record(ttft=0.3, lag=0.2)], SLO, 1)
    assert seen.ttft_p50_ms == pytest.approx(300)
    assert seen.ttft_sent_p50_ms == pytest.approx(100)
    assert seen.lag_p99_ms == pytest.approx(200)


def test_pace_counts_the_servers_tokens_where_chunks_hold_several() -> None:
    two_chunks = msgspec.structs.replace(record(tokens=2, tpot=1.0), completion_tokens=11)
    assert two_chunks.tpot == pytest.approx(0.1)
    assert msgspec.structs.replace(record(tokens=3, tpot=0.1), completion_tokens=0).tpot == pytest.approx(0.1)
    assert record(tokens=1).tpot is None


def test_failures_count_as_errors_and_as_nothing_else() -> None:
    failed = record(ttft=9, prompt=10_000, cached=10_000, error="HTTP 500: oops")
    seen = summarise([record(), failed, failed], SLO, 1)
    assert (seen.requests, seen.errors, seen.hit_rate) == (3, 2, 0)
    assert seen.ttft_p99_ms == pytest.approx(100)
    assert seen.error_messages == {"HTTP 500: oops": 2}


def test_a_run_without_requests_has_no_figures_rather_than_zeros() -> None:
    seen = summarise([], SLO, 4)
    assert (seen.requests, seen.errors, seen.goodput_rps) == (0, 0, 0)
    assert seen.hit_rate is seen.ttft_p50_ms is seen.tpot_ms is seen.balance is None


def test_the_json_form() -> None:
    facts = WorkloadReport("multi-turn RAG", 1, 10, 1000, 5, 500, RagParameters(), SLO, FleetParameters())
    comparison = Comparison({"kv": report(), "round_robin": report(hit_rate=None)}, facts)
    written = msgspec.json.encode(comparison)
    assert msgspec.json.decode(written, type=Comparison) == comparison
    plain = msgspec.json.decode(written)
    assert plain["version"] == 1
    assert set(plain["policies"]) == {"kv", "round_robin"}
    expected = {"hit_rate", "ttft_p50_ms", "ttft_p95_ms", "tpot_ms", "goodput_rps", "balance", "errors", "requests"}
    assert expected <= set(plain["policies"]["kv"])
    assert plain["policies"]["kv"]["hit_rate"] == 0.5
    assert plain["policies"]["round_robin"]["hit_rate"] is None
    assert plain["workload"]["parameters"]["zipf"] == RagParameters().zipf
    assert plain["workload"]["fleet"]["replicas"] == FleetParameters().replicas


def printed(policies: dict[str, PolicyReport]) -> dict[str, str]:
    """The table's lines by the first words of each."""
    console = Console(file=io.StringIO(), width=160)
    console.print(table(policies, SLO))
    assert isinstance(console.file, io.StringIO)
    rows = [line.split("│") for line in console.file.getvalue().splitlines() if "│" in line]
    return {row[1].strip(): " | ".join(cell.strip() for cell in row[2:-1]) for row in rows}


def test_the_table_marks_the_best_of_each_row() -> None:
    lines = printed(
        {
            "a": report(hit_rate=0.25, ttft_p50_ms=900.0, ttft_p95_ms=None),
            "b": report(hit_rate=0.75, ttft_p50_ms=300.0, ttft_p95_ms=1500.0),
            "c": report(hit_rate=0.75, ttft_p50_ms=300.4, ttft_p95_ms=1200.0),
        }
    )
    assert lines["hit rate"] == "25.0% | 75.0% * | 75.0% *"
    assert lines["TTFT p50, ms"] == "900 | 300 * | 300 *"
    assert lines["TTFT p95, ms"] == "– | 1,500 | 1,200 *"
    assert lines["TPOT mean, ms"] == "20.00 | 20.00 | 20.00"
    assert "TTFT ≤ 500 ms, TPOT ≤ 50 ms" in " ".join(lines)


def test_the_sentence_follows_the_figures_whichever_way_they_point() -> None:
    fast = report(hit_rate=0.9, ttft_p50_ms=100.0, ttft_p95_ms=500.0)
    slow = report(hit_rate=0.3, ttft_p50_ms=310.0, ttft_p95_ms=510.0)
    policies = {"kv": fast, "round_robin": slow}
    assert verdict(policies, "kv", "round_robin") == (
        "kv against round_robin: hit rate 3.0x higher, TTFT p50 3.1x lower, TTFT p95 about the same."
    )
    assert verdict(policies, "round_robin", "kv") == (
        "round_robin against kv: hit rate 3.0x lower, TTFT p50 3.1x higher, TTFT p95 about the same."
    )
    blank = {"kv": fast, "round_robin": report(hit_rate=0.0, ttft_p50_ms=None)}
    assert "hit rate not comparable, TTFT p50 not comparable" in verdict(blank, "kv", "round_robin")


def test_failures_name_the_policy_and_the_message() -> None:
    good = summarise([record()], SLO, 1)
    bad = summarise([record(), record(error="HTTP 500: oops"), record(error="HTTP 500: oops")], SLO, 1)
    assert failures({"kv": good}) == []
    assert failures({"kv": good, "random": bad}) == ["random: 2 x HTTP 500: oops"]
    assert "no request was due" in failures({"kv": summarise([], SLO, 1)})[0]
