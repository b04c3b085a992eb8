"""`radixgate bench grid`: each cell is what `bench simulate` says of it, made once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from loadgen.commands.bench import bench
from tests.loadgen.left import ROOT, environment, running
from tests.router.harness import wait_until

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


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--rate-scale", "nan"), "--rate-scale"),
        (("--capacity-tokens", "0"), "--capacity-tokens"),
        (("--out", "/dev/null"), "/dev/null"),
        (("--out", "/proc/no"), "cannot make the folder /proc/no (--out)"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: tuple[str, ...], complaint: str) -> None:
    ran = grid(tmp_path, *options, "--replicas", "1")
    assert ran.exit_code in (1, 2)
    assert isinstance(ran.exception, SystemExit)
    assert complaint in " ".join(ran.output.split())


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    shared = ("--replicas", "1", "--", "--policy", "kv", "--prefill-only")
    assert grid(tmp_path, *shared).exit_code == 0
    (file,) = tmp_path.iterdir()
    file.write_text("x")
    ran = grid(tmp_path, *shared)
    assert ran.exit_code == 1
    assert f"{file} (--out) is no result" in " ".join(ran.output.split())


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_grid_ends_its_simulations(tmp_path: Path, number: int) -> None:
    lines = [
        {"timestamp": 10 * index, "input_length": 5000, "output_length": 500, "hash_ids": list(range(10))}
        for index in range(50_000)
    ]
    trace = tmp_path / "long.jsonl"
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    main = [sys.executable, "-c", "from loadgen.commands.bench import bench; bench()"]
    arguments = ["grid", "--trace", str(trace), "--out", str(tmp_path / "out"), "--replicas", "2", "--jobs", "2"]
    process = subprocess.Popen(
        [*main, *arguments, "--replicas", "4", "--", "--policy", "kv"],
        env=environment(tmp_path),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        wait_until(lambda: len(running(tmp_path)) == 3, 60)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said.decode()
    assert b"Traceback" not in said
    assert running(tmp_path) == {}
