"""`python -m loadgen.routers` as a user runs it: a small run of the real thing, and what cannot be run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import loadgen

ROOT = Path(loadgen.__file__).parents[1]
EXCERPT = Path(__file__).parents[1] / "excerpt.jsonl"
TIMEOUT_S = 120

# What a fleet that forgets nothing finds cached of the excerpt, in whole blocks of 16 tokens.
EXCERPT_TOKENS = 8372
EXCERPT_CACHED = 512 + 1024 + 688 + 0 + 1392 + 512 + 1488


def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadgen.routers", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)


def test_two_routers_over_one_tree_find_what_one_router_finds(tmp_path: Path) -> None:
    figures = tmp_path / "new" / "figures.json"
    size = ["--replicas", "2", "--kv-tokens", "20000", "--speedup", "10", "--max-output", "4"]
    settings = ["--routers", "2", "--setting", "one", "--setting", "shared"]
    done = compare("--no-rag", "--trace", str(EXCERPT), *size, *settings, "--json", str(figures))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(figures.read_text())
    (workload,) = result["workloads"]
    (one,), (shared,) = workload["runs"]["one"], workload["runs"]["shared"]
    for report in (one, shared):
        assert (report["requests"], report["errors"], report["prompt_tokens"]) == (8, 0, EXCERPT_TOKENS)
    assert one["cached_tokens"] == EXCERPT_CACHED
    assert 0.8 * EXCERPT_CACHED <= shared["cached_tokens"] <= EXCERPT_CACHED
    assert workload["facts"]["distinct_blocks"] == 7
    assert result["machine"]["cores"]
    assert "trace, shared: " in done.stdout
    assert "2 routers, one tree" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--no-rag"], "give --trace FILE"),
        (["--trace", "none.jsonl"], "none.jsonl cannot be read"),
        (["--no-rag", "--trace", str(EXCERPT), "--kv-tokens", "1000"], "--kv-tokens"),
        (["--setting", "four"], "'four' is not one of"),
    ],
)
def test_what_cannot_be_run_is_explained_at_once(arguments: list[str], complaint: str) -> None:
    done = compare(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
