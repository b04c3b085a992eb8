"""What `kv` promises of whole fleets: hot prefixes spread, nothing herds, slow replicas get less, dead ones nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest

from loadgen.reports.schema import Slo
from loadgen.traces import BLOCK_TOKENS, TraceRequest
from loadgen.virtual.fleet import FleetSetup, Outcome, VirtualFleet
from loadgen.virtual.incidents import parse_incident
from loadgen.virtual.prompts import asks
from loadgen.virtual.report import figures
from scoring.policies import make_policy

RATE = 8000.0
REPLICAS = 8


def fleet(*incidents: str, capacity_blocks: int = 2000) -> FleetSetup:
    return FleetSetup(
        replicas=REPLICAS,
        capacity_tokens=capacity_blocks * BLOCK_TOKENS,
        prefill_only=True,
        prefill_rate=RATE,
        incidents=tuple(map(parse_incident, incidents)),
    )


def run(setup: FleetSetup, asked: Sequence[TraceRequest], policy: str = "kv") -> Outcome:
    return VirtualFleet(setup, make_policy(policy, Random(1))).run(asks(asked, None))


def poisson(rate: float, seconds: float, blocks: Sequence[Sequence[int]]) -> list[TraceRequest]:
    """Requests at random moments, each for the next of `blocks` with a block of its own at the end."""
    random, now, asked = Random(3), 0.0, list[TraceRequest]()
    while (now := now + random.expovariate(rate)) < seconds:
        known = blocks[len(asked) % len(blocks)]
        prompt = (*known, 10**6 + len(asked))
        asked.append(TraceRequest(now, len(prompt) * BLOCK_TOKENS, 1, prompt))
    return asked


def conversations(rate: float, seconds: float, turns: int = 4, own_blocks: int = 4) -> list[TraceRequest]:
    """Conversations that share their first block; each turn adds `own_blocks` to the one before it, 20 s later."""
    random, now, number, asked = Random(4), 0.0, 0, list[TraceRequest]()
    while (now := now + random.expovariate(rate)) < seconds:
        number += 1
        for turn in range(1, turns + 1):
            own = range(number * 1000, number * 1000 + turn * own_blocks)
            prompt = (0, *own)
            asked.append(TraceRequest(now + 20.0 * turn, len(prompt) * BLOCK_TOKENS, 1, prompt))
    return sorted(asked, key=lambda each: each.at_s)


def shares(outcome: Outcome, since: float = 0.0, until: float = 1e9) -> dict[str, float]:
    """Of each replica, the prompt tokens that it computed, relative to the mean."""
    computed: Counter[str] = Counter({facts.name: 0 for facts in outcome.replicas})
    for job in outcome.jobs:
        if since <= job.ask.at_s < until:
            computed[job.replica] += job.ask.prompt_tokens - job.cached_tokens
    return {name: tokens * len(computed) / computed.total() for name, tokens in computed.items()}


def test_a_prefix_hotter_than_one_replica_can_serve_is_spread_over_as_many_as_it_needs() -> None:
    """Served from the cache, a replica can take 15 such requests a second: of 40, three replicas' worth, with some
    room. Elsewhere the prefix costs as much as eight cached requests."""
    hot = [list(range(1, 9))]
    found = {name: figures(run(fleet(), poisson(40, 60, hot), name), Slo()) for name in ("kv", "sticky", "least_load")}
    kv = found["kv"]
    holders = sum(tokens > 0 for tokens in kv.computed_tokens.values())
    assert 3 <= holders <= REPLICAS
    assert kv.hit_rate is not None
    assert kv.hit_rate > 0.85  # 8 of 9 blocks are the most
    assert kv.ttft_mean_s is not None
    assert kv.ttft_mean_s < 0.2  # least_load, which has it everywhere at once: 0.07; sticky: 28
    assert kv.ttft_mean_s < (found["sticky"].ttft_mean_s or 0) / 20


def test_prompts_that_all_share_their_first_block_do_not_collapse_onto_one_replica() -> None:
    asked = conversations(3.0, 200)
    outcome = run(fleet(), asked)
    assert max(shares(outcome).values()) < 1.5
    longest = run(fleet(), asked, "longest_prefix")
    assert max(shares(longest).values()) > 5  # what it is a test of
    assert outcome.end_s < longest.end_s


def test_a_replica_at_half_speed_gets_less_and_its_requests_wait_no_longer_than_others() -> None:
    outcome = run(fleet("0:slow:0:2"), conversations(4.0, 300))
    share = shares(outcome, since=60)
    assert share["replica-0"] < 0.8
    assert max(share.values()) < 1.5


def test_a_replica_that_slows_down_fivefold_loses_most_of_its_work_within_a_minute() -> None:
    outcome = run(fleet("200:slow:0:5"), conversations(4.0, 400))
    assert shares(outcome, 100, 200)["replica-0"] > 0.6
    after = shares(outcome, 260, 400)
    assert after["replica-0"] < 0.5
    assert max(after.values()) < 1.5


def test_a_cold_replica_gets_its_share_and_not_more() -> None:
    outcome = run(fleet("200:add"), conversations(4.0, 400))
    for since in range(200, 400, 20):
        assert shares(outcome, since, since + 20)[f"replica-{REPLICAS}"] < 2.0
    assert 0.6 < shares(outcome, 260, 400)[f"replica-{REPLICAS}"] < 1.5


@pytest.mark.parametrize("action", ["remove", "kill"])
def test_what_is_gone_gets_nothing_and_the_rest_share_evenly(action: str) -> None:
    outcome = run(fleet(f"200:{action}:0"), conversations(3.0, 400))
    assert not any(job.error for job in outcome.jobs)
    after = shares(outcome, 220, 400)
    assert after["replica-0"] == 0.0
    assert max(after.values()) < 1.5 * REPLICAS / (REPLICAS - 1)
