"""Receipts for tests: made by hand, and made by a real router over simulated replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Any

import httpx
import msgspec

from loadgen.compare.receipts import Recorded
from loadgen.fleet import FleetParameters
from loadgen.plans.catalogue import make_plan
from loadgen.plans.prompts import Prompts
from loadgen.runs.runner import Runner
from loadgen.runs.stands import policy_stand

PACE = 0.001  # seconds a token, in receipts made by hand


def receipt(
    at: float,
    overlaps: Sequence[int],
    loads: Sequence[tuple[int, int, int]],
    chosen: int,
    *,
    prompt: int = 1000,
    names: str = "abcdefgh",
    **more: Any,
) -> Recorded:
    """By replicas a, b, ... that take PACE seconds a token, unless `ttft_s` is given."""
    uncached = max(1, prompt - overlaps[chosen])
    happened: dict[str, Any] = {"ttft_s": (loads[chosen][0] + uncached) * PACE, "status": 200, "outcome": "answered"}
    happened["duration_s"] = (more.get("ttft_s", happened["ttft_s"]) or 0.0) + 0.5
    known: dict[str, Any] = {
        "at": at,
        "policy": "kv",
        "prompt_tokens": prompt,
        "candidates": tuple(names[: len(overlaps)]),
        "overlap_tokens": tuple(overlaps),
        "loads": tuple(loads),
        "chosen": names[chosen],
    }
    return Recorded(**(known | happened | more))


def as_lines(receipts: Sequence[object]) -> bytes:
    return b"".join(msgspec.json.encode(each) + b"\n" for each in receipts)


@cache
def answered_by_a_router(policy: str, replicas: int) -> bytes:
    """What GET /receipts says after a second of readers; the run is made once."""
    return asyncio.run(_record(policy, replicas))


async def _record(policy: str, replicas: int) -> bytes:
    plan = make_plan("rag", arrivals="poisson:12", duration_s=1.5, settings={"think_s": 0.1})
    async with policy_stand(policy, FleetParameters(replicas=replicas, speedup=8), seed=1) as stand:
        records = await Runner(stand.target, plan, Prompts(plan, "chat", "real")).run()
        assert not any(record.error for record in records)
        async with httpx.AsyncClient() as http:
            answer = await http.get(f"{stand.target.control}/receipts?limit=1024")
            return answer.content
