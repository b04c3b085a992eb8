"""The demo's JSON: its names, its units, and that nothing is lost on the way."""

from __future__ import annotations

import msgspec
import pytest

from loadgen.demo.document import Comparison, comparison, readers_facts, run_figures
from loadgen.demo.measuring import SLO, Measured
from loadgen.demo.readers import readers
from loadgen.fleet import FleetParameters
from loadgen.plans.catalogue import make_again
from loadgen.reports.figures import Setting
from loadgen.reports.schema import to_json
from tests.loadgen.demo.runs import run
from tests.loadgen.reports.samples import failure, record, report


def test_the_json_form() -> None:
    plan = readers(seed=3)
    compared = comparison({"kv": run(), "round_robin": run(hit_rate=None)}, readers_facts(plan, FleetParameters()))
    written = to_json(compared)
    assert to_json(msgspec.json.decode(written, type=Comparison)) == written
    plain = msgspec.json.decode(written)
    assert plain["version"] == 2
    assert set(plain["policies"]) == {"kv", "round_robin"}
    expected = {"hit_rate", "ttft_p50_ms", "ttft_p95_ms", "tpot_ms", "goodput_rps", "balance", "errors", "requests"}
    assert expected <= set(plain["policies"]["kv"])
    assert plain["policies"]["kv"]["hit_rate"] == 0.5
    assert plain["policies"]["round_robin"]["hit_rate"] is None
    assert plain["workload"]["slo"] == {"ttft_ms": 500.0, "tpot_ms": 50.0}
    assert plain["workload"]["fleet"]["replicas"] == FleetParameters().replicas
    assert make_again("rag", plain["workload"]["seed"], plain["workload"]["parameters"]) == plan


def test_figures_are_those_of_the_report_in_milliseconds() -> None:
    records = [
        record(prompt=900, cached=900, ttft=0.1, replica="r0"),
        record(prompt=100, ttft=0.3, lag=0.2, replica="r1"),
        failure(error="HTTP 500: oops", replica="r1"),
        failure(error="HTTP 500: oops"),
    ]
    found = run_figures(Measured(report(records, Setting(slo=SLO)), cores_busy=0.75))
    assert (found.requests, found.errors, found.cores_busy) == (4, 2, 0.75)
    assert found.hit_rate == pytest.approx(0.9)
    assert (found.prompt_tokens, found.cached_tokens) == (1000, 900)
    assert found.ttft_p50_ms == pytest.approx(200)
    assert found.ttft_sent_p50_ms == pytest.approx(100)
    assert found.tpot_ms == pytest.approx(20)
    assert found.lag_p99_ms == pytest.approx(194)
    assert found.replicas == {"r0": 1, "r1": 1}  # answers, not failures
    assert found.error_messages == {"HTTP 500: oops": 2}


def test_a_run_without_requests_has_no_figures_rather_than_zeros() -> None:
    found = run_figures(Measured(report([], Setting(slo=SLO)), 0.0))
    assert (found.requests, found.errors) == (0, 0)
    assert found.hit_rate is found.ttft_p50_ms is found.tpot_ms is found.balance is found.goodput_rps is None


def test_the_facts_tell_what_of_the_library_gets_opened() -> None:
    plan = readers(seed=1)
    facts = readers_facts(plan, FleetParameters())
    documents = {session.turns[0].pieces[1] for session in plan.sessions}
    assert facts.sessions == len(plan.sessions)
    assert facts.opened_documents == len(documents) < 60
    assert facts.opened_tokens == sum(document.tokens for document in documents) < facts.library_tokens
