"""`radixgate bench simulate`: what it writes, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from loadgen.commands.bench import bench
from loadgen.virtual.ideals import infinite_hit_rate, pooled_hit_rate
from loadgen.virtual.prompts import asks
from replica.reuse import EVICTIONS, make_eviction
from replica.settings import Settings
from tests.loadgen.virtual.asks import request

EXCERPT = Path(__file__).parents[1] / "excerpt.jsonl"


def simulate(*options: str, trace: Path = EXCERPT) -> Result:
    return CliRunner().invoke(bench, ["simulate", "--trace", str(trace), *options])


def document(tmp_path: Path, *options: str) -> dict[str, Any]:
    file = tmp_path / "out" / "figures.json"
    result = simulate(*options, "--json", str(file))
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(file.read_bytes())
    return found


@pytest.mark.parametrize("model", [("--prefill-only", "--utilisation", "1.0"), ()])
def test_the_document_has_each_policy_and_the_ideals(tmp_path: Path, model: tuple[str, ...]) -> None:
    found = document(tmp_path, "--replicas", "2", "--policy", "kv", "--policy", "least_load", *model)
    assert list(found["policies"]) == ["kv", "least_load"]
    for figures in found["policies"].values():
        assert 0 <= figures["hit_rate"] <= found["ideal"]["infinite"]
        assert 0 < figures["ttft_mean_s"] <= figures["ttft_p99_s"]
        assert 1 <= figures["balance"] <= 2
        assert (figures["tpot_mean_s"] is None) == bool(model)
    # The ids of the excerpt: 0 1 2, 0 3, 0 1 4, 0 3, 9, 0 1 4, 9 10, and the line after them.
    assert found["ideal"]["infinite"] == found["ideal"]["pooled_lru"] == found["ideal"]["pooled_reuse"] > 0


def test_equal_seeds_write_equal_documents_and_the_seed_is_in_them(tmp_path: Path) -> None:
    options = ("--policy", "random", "--event-loss", "0.3", "--event-delay", "0.1", "--window", "5", "--seed", "7")
    one, other = document(tmp_path, *options), document(tmp_path, *options)
    assert one == other
    assert one["setup"]["seed"] == 7
    assert one["policies"]["random"]["timeline"]["window_s"] == 5


def test_utilisation_scales_the_prefill_rate_to_the_span(tmp_path: Path) -> None:
    full = document(tmp_path, "--prefill-only", "--replicas", "4", "--policy", "kv")["setup"]
    half = document(tmp_path, "--prefill-only", "--replicas", "4", "--policy", "kv", "--utilisation", "0.5")["setup"]
    tokens = sum(json.loads(line)["input_length"] for line in EXCERPT.read_text().split("\n") if line)
    assert full["prefill_rate"] == pytest.approx(tokens / (4 * full["span_s"]))
    assert half["prefill_rate"] == pytest.approx(2 * full["prefill_rate"])


def test_requests_may_come_faster_and_be_fewer(tmp_path: Path) -> None:
    plain = document(tmp_path, "--policy", "kv")["setup"]
    fast = document(tmp_path, "--policy", "kv", "--rate-scale", "2", "--until", "12")["setup"]
    assert fast["requests"] < plain["requests"]
    assert fast["span_s"] == 5.0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--policy", "psychic"), "psychic"),
        (("--utilisation", "1", "--prefill-rate", "9"), "leave out --prefill-rate"),
        (("--capacity-tokens", "1000"), "--capacity-tokens 1000 is too small"),
        (("--incident", "5:melt:1"), "SECONDS:slow:REPLICA:FACTOR"),
        (("--incident", "5:kill:8"), "no replica 8"),
        (("--incident", "5:kill:8", "--incident", "6:add"), "no replica 8 at 5 s"),
        (("--max-running", "4096"), "--max-running"),
        (("--until", "0"), "--until"),
        (("--until", "nan"), "--until"),
        (("--rate-scale", "nan"), "--rate-scale"),
        (("--prefill-rate", "inf"), "--prefill-rate"),
        (("--event-loss", "nan"), "--event-loss"),
        (("--event-delay", "inf"), "--event-delay"),
        (("--slo-ttft", "nan"), "--slo-ttft"),
        (("--window", "1e-9"), "--window"),
        (("--json", str(EXCERPT)), "--trace and --json are the same file"),
    ],
)
def test_bad_options_are_named(options: tuple[str, ...], complaint: str) -> None:
    result = simulate(*options)
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())


def test_a_damaged_or_empty_trace_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("oops\n")
    assert "line 1" in simulate(trace=damaged).output
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "no requests" in simulate(trace=empty).output


def test_requests_that_are_not_served_are_counted_and_fail_the_command(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ("--replicas", "1", "--policy", "kv", "--incident", "3:kill:0", "--json", str(file))
    result = simulate(*options)
    assert result.exit_code == 1
    assert "not served" in result.output
    assert json.loads(file.read_bytes())["policies"]["kv"]["errors"] > 0


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_the_ideals_by_hand(eviction: str) -> None:
    listed = asks([request(0, 1024), request(1, 1024, conversation=1), request(2, 2048)], None)
    assert infinite_hit_rate(listed) == 2 / 8
    assert pooled_hit_rate(listed, 6, make_eviction(eviction, 6)) == 2 / 8
    assert pooled_hit_rate(listed, 4, make_eviction(eviction, 4)) == 2 / 8
    assert pooled_hit_rate(listed, 2, make_eviction(eviction, 2)) == 0


def test_the_eviction_is_the_replicas_own_unless_another_is_named(tmp_path: Path) -> None:
    assert document(tmp_path, "--policy", "kv")["setup"]["eviction"] == Settings("r").eviction
    small = ("--policy", "kv", "--replicas", "1", "--capacity-tokens", "5000", "--prefill-only")
    found = {name: document(tmp_path, *small, "--eviction", name) for name in EVICTIONS}
    assert [found[name]["setup"]["eviction"] for name in EVICTIONS] == list(EVICTIONS)


def test_figures_that_cannot_be_written_are_shown(tmp_path: Path) -> None:
    ran = CliRunner().invoke(bench, ["simulate", "--trace", str(EXCERPT), "--policy", "kv", "--json", "/dev/full"])
    assert ran.exit_code == 1
    assert "cannot write /dev/full (--json): No space left on device" in ran.output
    assert "Hit rates possible" in ran.output
