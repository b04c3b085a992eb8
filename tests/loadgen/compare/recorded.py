"""Receipts for tests: made by hand, and made by a real router over simulated replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Any

import httpx
import msgspec

from loadgen.cli import demo_workload
from loadgen.client import OpenLoopClient
from loadgen.compare.receipts import Recorded
from loadgen.fleet import FleetParameters, local_fleet
from loadgen.workloads import RagParameters

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
    workload = demo_workload(RagParameters(duration_s=1.5, sessions_per_s=12, think_s=0.1), seed=1)
    async with local_fleet(policy, FleetParameters(replicas=replicas, speedup=8), seed=1) as fleet:
        records = await OpenLoopClient(fleet.url, fleet.model, workload).run()
        assert not any(record.error for record in records)
        async with httpx.AsyncClient() as http:
            answer = await http.get(f"{fleet.control}/receipts?limit=1024")
            return answer.content
