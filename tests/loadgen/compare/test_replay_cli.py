"""`radixgate bench replay`: what it writes and prints, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from loadgen.commands.bench import bench
from tests.loadgen.compare.recorded import answered_by_a_router, as_lines, receipt

IDLE = (0, 0, 0)


def replay(file: Path, *options: str) -> Result:
    return CliRunner().invoke(bench, ["replay", str(file), *options])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "receipts.json"
    path.write_bytes(answered_by_a_router("least_load", 3))
    return path


def test_the_document_has_the_recorded_choices_and_each_policy(file: Path, tmp_path: Path) -> None:
    written = tmp_path / "out" / "replay.json"
    done = replay(file, "--policy", "kv", "--policy", "like_dynamo", "--replicas", "5", "--json", str(written))
    assert done.exit_code == 0, done.output
    found = json.loads(written.read_bytes())
    assert found["schema"] == 1
    assert found["recorded_under"] == {"least_load": found["receipts"]}
    assert sorted(found["recorded_replicas"]) == ["r0", "r1", "r2"]
    assert list(found["policies"]) == ["recorded", "kv", "like_dynamo"]
    assert list(found["resimulated"]) == ["kv", "like_dynamo"]
    assert found["policies"]["kv"]["regret_mean_s"] <= found["policies"]["recorded"]["regret_mean_s"]
    assert "holds nothing, ever" in " ".join(done.output.split())


def test_the_table_has_a_row_a_policy_and_says_what_it_assumes(file: Path) -> None:
    done = replay(file)
    assert done.exit_code == 0, done.output
    for text in ("recorded", "kv", "least_load", "regret", "each decision is judged by itself", "off by"):
        assert text in done.output


def test_a_policys_name_in_a_receipt_is_no_markup() -> None:
    data = as_lines([receipt(0.0, [0], [IDLE], 0, policy="[/red]")])
    done = CliRunner().invoke(bench, ["replay", "-"], input=data)
    assert done.exit_code == 0, done.output
    assert "recorded under [/red]" in done.output


def test_standard_input_will_do() -> None:
    data = as_lines([receipt(0.0, [0, 0], [IDLE, IDLE], 0, ttft_s=None)])
    done = CliRunner().invoke(bench, ["replay", "-"], input=data)
    assert done.exit_code == 0, done.output
    assert "no receipt has a time to first token" in done.output


@pytest.mark.parametrize(
    ("data", "options", "code", "complaint"),
    [
        (b"oops\n", (), 1, "line 1"),
        (b"", (), 1, "has no receipts"),
        (as_lines([receipt(0.0, [0], [IDLE], 0)]), ("--policy", "sticky"), 1, "hashes a request's prefix"),
        (as_lines([receipt(0.0, [0], [IDLE], 0)]), ("--policy", "psychic"), 2, "psychic"),
        (as_lines([receipt(0.0, [0], [IDLE], 0)]), ("--replicas", "0"), 2, "--replicas"),
        (as_lines([receipt(0.0, [0], [IDLE], 0)]), ("--prefill-rate", "nan"), 2, "no finite number"),
        (as_lines([receipt(0.0, [0], [IDLE], 0)]), ("--json", "/proc/no/such"), 1, "cannot write /proc/no/such"),
    ],
)
def test_bad_input_is_named(data: bytes, options: tuple[str, ...], code: int, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "receipts.jsonl"
    file.write_bytes(data)
    done = replay(file, *options)
    assert done.exit_code == code
    assert complaint in " ".join(done.output.split())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = replay(tmp_path / "none.jsonl")
    assert done.exit_code != 0
    assert "none.jsonl" in done.output
