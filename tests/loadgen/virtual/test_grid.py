"""`radixgate bench grid`: each cell is what `bench simulate` says of it, made once."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from loadgen.commands.bench import bench

EXCERPT = Path(__file__).parents[1] / "excerpt.jsonl"


def grid(out: Path, *options: str) -> Result:
    return CliRunner().invoke(bench, ["grid", "--trace", str(EXCERPT), "--out", str(out), *options])


def test_every_cell_is_what_simulate_says(tmp_path: Path) -> None:
    shared = ("--policy", "kv", "--policy", "least_load", "--prefill-only")
    ran = grid(tmp_path, "--replicas", "1", "--replicas", "2", "--", *shared)
    assert ran.exit_code == 0, ran.output
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    alone = tmp_path / "alone.json"
    CliRunner().invoke(bench, ["simulate", "--trace", str(EXCERPT), "--replicas", "2", *shared, "--json", str(alone)])
    assert json.loads(files[1].read_bytes()) == json.loads(alone.read_bytes())
    rows = [line for line in ran.output.splitlines() if line.startswith("| 1M")]
    assert [row.split(" | ")[1] for row in rows] == ["1", "2"]
    assert all("**" in row for row in rows)
    files[0].write_bytes(files[0].read_bytes().replace(b'"kv"', b'"marked"'))
    again = grid(tmp_path, "--replicas", "1", "--", *shared)
    assert "marked" in again.output  # it was not simulated again
    other = grid(tmp_path, "--replicas", "1", "--", *shared, "--seed", "2")
    assert "marked" not in other.output


def test_a_cell_that_fails_says_its_command(tmp_path: Path) -> None:
    ran = grid(tmp_path / "out", "--capacity-tokens", "600", "--replicas", "1", "--", "--policy", "kv")
    assert ran.exit_code == 1
    assert "radixgate bench simulate" in ran.output
    assert "--capacity-tokens 600 is too small" in ran.output
    assert not list((tmp_path / "out").iterdir())


def test_two_cells_never_share_a_file_and_each_is_simulated_once(tmp_path: Path) -> None:
    shared = ("--", "--policy", "least_load", "--prefill-only")
    ran = grid(tmp_path / "twice", "--replicas", "1", "--replicas", "1", *shared)
    assert ran.exit_code == 0, ran.output
    assert len([line for line in ran.output.splitlines() if line.startswith("| 1M")]) == 1
    other = tmp_path / EXCERPT.name
    other.write_bytes(EXCERPT.read_bytes())
    ran = grid(tmp_path / "out", "--trace", str(other), "--replicas", "1", *shared)
    assert ran.exit_code == 2
    assert "--trace" in ran.output
    assert not (tmp_path / "out").exists()
