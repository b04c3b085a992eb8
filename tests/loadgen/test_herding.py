"""Bursts: that every setting is asked the same, what the fake replicas count, and a small run of the real thing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

import loadgen
from loadgen.herding.bursts import PREFIX_TOKENS, SCENARIOS, BurstParameters
from loadgen.herding.fake_replicas import BLOCK_SIZE, FakeReplica
from loadgen.herding.stand import unseen

ROOT = Path(loadgen.__file__).parents[1]
TIMEOUT_S = 120
ASKED = BurstParameters(requests=40, window_s=0.02, routers=3)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_seed_gives_one_burst(name: str) -> None:
    make = SCENARIOS[name][0]
    burst = make(ASKED, Random(f"{name} 1"))
    assert burst == make(ASKED, Random(f"{name} 1"))
    assert burst != make(ASKED, Random(f"{name} 2"))
    moments = [shot.at_s for shot in burst.shots]
    assert len(moments) == 40
    assert moments == sorted(moments)
    assert 0 <= moments[0] <= moments[-1] <= 0.02
    assert {shot.router for shot in burst.shots} <= {0, 1, 2}


def test_only_siblings_share_a_beginning() -> None:
    for name, (make, _) in SCENARIOS.items():
        burst = make(ASKED, Random(1))
        prompts = [*(shot.prompt for shot in burst.shots), *burst.warm, *burst.before]
        beginnings = {tuple(prompt[:BLOCK_SIZE]) for prompt in prompts}
        assert len(beginnings) == (1 if name == "siblings" else len(prompts))
        if name == "siblings":
            assert len({tuple(prompt[:PREFIX_TOKENS]) for prompt in prompts}) == 1


def test_a_fake_replica_counts_what_it_would_have_to_compute() -> None:
    replica = FakeReplica("r", "", lambda held: None)
    one, other = list(range(100)), list(range(500, 560))
    assert replica.computed([one, one, other]) == 100 + (100 - 96) + 60
    assert replica.computed([one]) == 100  # asking changed nothing
    replica.keep(one)
    assert replica.blocks == 6
    assert replica.computed([one, [*one[:50], *other]]) == 4 + (110 - 48)
    assert replica.computed([one[:96]]) == 1  # the last token is computed always
    assert [len(chain.packed) // 8 for chain in replica.snapshot().stored] == [6]
    replica.keep([*one, *other])
    assert [len(chain.packed) // 8 for chain in replica.snapshot().stored] == [6, 4]


def test_what_a_router_did_not_know_is_what_was_open_and_not_in_its_view() -> None:
    assert unseen([0, 1, 2], before=0) == 0
    assert unseen([0, 0, 1], before=0) == pytest.approx(2 / 3)
    assert unseen([0, 5], before=4) == 2


def test_a_small_burst_is_spread_and_counted(tmp_path: Path) -> None:
    figures = tmp_path / "new" / "figures.json"
    size = ["--bursts", "1", "--requests", "24", "--routers", "2", "--replicas", "3"]
    scenarios = [part for name in ("equal", "loaded", "siblings") for part in ("--scenario", name)]
    done = subprocess.run(
        [sys.executable, "-m", "loadgen.herding", *size, *scenarios, "--json", str(figures)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    spreads = json.loads(figures.read_text())["spreads"]
    assert list(spreads) == ["equal", "loaded", "siblings"]
    for name, by_setting in spreads.items():
        assert list(by_setting) == ["one", "shared", "private"]
        for (spread,) in by_setting.values():
            assert sum(spread["per_replica"].values()) == (28 if name == "loaded" else 24)
            assert 1 <= spread["requests"] <= 3
            assert 1 <= spread["computed"] <= 3
    assert spreads["equal"]["one"][0]["requests"] == 1.0  # who knows everything spreads equal prompts evenly
    assert spreads["equal"]["one"][0]["unseen"] == 0
    assert spreads["siblings"]["one"][0]["hit_rate"] > 0.5
    assert "Equal prompts over one ledger: " in done.stdout
    assert "Measured on " in done.stdout
