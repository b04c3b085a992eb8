"""`radixgate demo` as a user runs it: real processes, a small schedule, the table, the JSON, and a clean end."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from loadgen.demo.command import demo
from loadgen.plans.catalogue import make_again
from tests.loadgen.left import ROOT, environment, running

TIMEOUT_S = 60
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "router.main", "demo", *arguments]


def in_terminal(tmp_path: Path) -> dict[str, str]:
    return {**environment(tmp_path), "TERM": "xterm"}


def test_a_small_demo_compares_policies(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["--duration", "1.5", "--rate", "4", "--replicas", "2", "--speedup", "4", "--json", str(figures)]
    done = subprocess.run(
        command(*arguments, "--policy", "round_robin", "--policy", "kv"),
        env=in_terminal(tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(figures.read_text())
    assert list(result["policies"]) == ["round_robin", "kv"]
    for policy in result["policies"].values():
        assert policy["errors"] == 0
        assert policy["requests"] > 0
        assert 0 <= policy["hit_rate"] <= 1
        assert policy["prompt_tokens"] >= 2000 * policy["requests"]
        assert set(policy["replicas"]) <= {"r0", "r1"}
        assert sum(policy["replicas"].values()) == policy["requests"]
    assert result["workload"]["fleet"]["replicas"] == 2
    asked = make_again("rag", result["workload"]["seed"], result["workload"]["parameters"])
    assert len(asked.sessions) == result["workload"]["sessions"]
    assert "kv against round_robin: " in done.stdout
    for label in ("hit rate", "TTFT p50", "TTFT p95", "TPOT", "goodput", "balance", "errors"):
        assert label in done.stdout
    figures.unlink()
    assert list(tmp_path.iterdir()) == []


class Running:
    """A demo at a terminal, once its first run has begun."""

    def __init__(self, tmp_path: Path) -> None:
        self._terminal, theirs = pty.openpty()
        arguments = command("--duration", "60", "--policy", "kv", "--replicas", "1")
        self.process = subprocess.Popen(arguments, env=in_terminal(tmp_path), cwd=ROOT, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.output = b""
        while b"under way" not in self.output:  # the live line
            self.output += os.read(self._terminal, 4096)

    def finish(self) -> int:
        while piece := self._more():
            self.output += piece
        os.close(self._terminal)
        return self.process.wait(TIMEOUT_S)

    def _more(self) -> bytes:
        """What it still writes; nothing once it has ended and its side of the terminal is closed."""
        try:
            return os.read(self._terminal, 4096)
        except OSError:
            return b""


@LINUX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    demo = Running(tmp_path)
    assert len(running(tmp_path)) == 3  # the demo, its router, its replica
    demo.process.send_signal(number)
    assert demo.finish() == 128 + number
    assert running(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


@LINUX
def test_a_replica_that_dies_ends_the_demo_with_its_name(tmp_path: Path) -> None:
    demo = Running(tmp_path)
    (replica,) = [pid for pid, line in running(tmp_path).items() if "replica" in line]
    os.kill(replica, signal.SIGKILL)
    assert demo.finish() == 1
    assert b"r0 ended with exit code -9" in demo.output
    assert running(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_fleet_that_cannot_start_is_explained(tmp_path: Path) -> None:
    done = subprocess.run(
        command("--duration", "1", "--policy", "no_such_policy"),
        env=in_terminal(tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 1
    assert "router ended with exit code" in done.stderr
    assert "no_such_policy" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rate", "0.0001", "--duration", "1"], "--rate: no session starts within 1 s"),
        (["--rate", "nan"], "'--rate': nan is no finite number"),
        (["--duration", "0.5"], "'--duration': 0.5 is not in the range"),
        (["--replicas", "0"], "'--replicas'"),
        (["--json", "/proc/no/such"], "cannot write /proc/no/such"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once_by_the_name_of_its_flag(arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(demo, arguments)
    assert done.exit_code != 0
    assert complaint in done.output
    assert "starting the fleet" not in done.output
