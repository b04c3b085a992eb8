"""`radixgate bench export`: another client can ask what `bench run` asks, when it asks it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from loadgen.commands.bench import bench
from loadgen.plans.catalogue import make_plan
from loadgen.plans.prompts import Prompts


def export(file: Path, *options: str) -> Result:
    return CliRunner().invoke(bench, ["export", "--model", "m", "--out", str(file), *options])


@pytest.mark.parametrize(
    ("workload", "settings"), [("universal", {}), ("chat", {"causal": "false"})], ids=["universal", "chat"]
)
def test_every_request_is_written_with_its_time_and_body(
    tmp_path: Path, workload: str, settings: dict[str, str]
) -> None:
    file = tmp_path / "asks.jsonl"
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    ran = export(file, "--workload", workload, "--arrivals", "poisson:2", "--duration", "10", *sets)
    assert ran.exit_code == 0, ran.output
    listed = [json.loads(line) for line in file.read_text().splitlines()]
    plan = make_plan(workload, arrivals="poisson:2", duration_s=10.0, settings=settings)
    assert len(listed) == plan.requests > 0
    stamps = [ask["timestamp"] for ask in listed]
    assert stamps == sorted(stamps)
    assert stamps[0] == pytest.approx(plan.sessions[0].start_s * 1e3, abs=1e-3)
    assert {ask["payload"]["model"] for ask in listed} == {"m"}
    body = Prompts(plan, "text", "planned").body(plan.sessions[0], 0, ())
    assert listed[0]["payload"].items() >= body.items()


@pytest.mark.parametrize("options", [("--workload", "chat"), ("--workload", "universal", "--arrivals", "closed:2")])
def test_what_waits_for_answers_cannot_be_written_beforehand(tmp_path: Path, options: tuple[str, ...]) -> None:
    ran = export(tmp_path / "asks.jsonl", *options)
    assert ran.exit_code == 2
    assert "causal=false" in ran.output
    assert not (tmp_path / "asks.jsonl").exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    plan = ("--workload", "universal", "--arrivals", "poisson:2", "--duration", "5")
    full = export(Path("/dev/full"), *plan)
    assert full.exit_code == 1
    assert "cannot write /dev/full (--out): No space left on device" in full.output
    trace = tmp_path / "trace.jsonl"
    line = '{"timestamp": 0, "input_length": 100, "output_length": 5, "hash_ids": [1]}\n'
    trace.write_text(line)
    same = export(trace, "--trace", str(trace))
    assert same.exit_code == 2
    assert "--trace and --out are the same file" in same.output
    assert trace.read_text() == line
