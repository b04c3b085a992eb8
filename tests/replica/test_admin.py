"""A simulated replica can be emptied and slowed from outside; nothing else changes for whoever asks it."""

from __future__ import annotations

import time

import httpx
import pytest

from radix.events import decode_snapshot
from replica.service import ReplicaService
from replica.simulated import SimulatedRunner
from tests.replica.conftest import QUICK

PROMPT = list(range(1000, 1400))


async def cached(http: httpx.AsyncClient) -> int:
    answer = await http.post("/v1/completions", json={"model": "simulated", "prompt": PROMPT, "max_tokens": 4})
    assert answer.status_code == 200
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


async def resident(http: httpx.AsyncClient) -> int:
    return sum(len(chain.keys) for chain in decode_snapshot((await http.get("/radixgate/blocks")).content).stored)


async def test_a_flush_forgets_every_prompt_and_says_so_to_whoever_keeps_count(
    http: httpx.AsyncClient, service: ReplicaService
) -> None:
    assert [await cached(http), await cached(http)] == [0, 384]
    before = await resident(http)
    assert before > 0
    flushed = await http.post("/admin/flush")
    assert flushed.json() == {"flushed_blocks": before}
    assert await resident(http) == 0
    service.engine.scheduler.pool.check_integrity()
    assert [await cached(http), await cached(http)] == [0, 384]


async def test_a_flush_leaves_requests_under_way_alone(http: httpx.AsyncClient, service: ReplicaService) -> None:
    body = {"model": "simulated", "prompt": PROMPT, "max_tokens": 200, "stream": True}
    async with http.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.aiter_lines()
        await anext(lines)
        assert (await http.post("/admin/flush")).status_code == 200
        rest = [line async for line in lines]
    assert rest[-2:] == ["data: [DONE]", ""]
    service.engine.scheduler.pool.check_integrity()


async def test_a_slowed_replica_takes_so_many_times_as_long_until_it_is_told_otherwise(
    http: httpx.AsyncClient, service: ReplicaService
) -> None:
    runner = service.engine._runner
    assert isinstance(runner, SimulatedRunner)
    assert (await http.post("/admin/slow?factor=1000")).json() == {"factor": 1000}
    began = time.monotonic()
    assert await cached(http) == 0
    assert time.monotonic() - began >= 4 * 1000 * QUICK.step_s
    await http.post("/admin/slow?factor=1")
    assert runner.slowness == 1


@pytest.mark.parametrize("factor", ["", "?factor=0", "?factor=-1", "?factor=nan", "?factor=inf", "?factor=x"])
async def test_a_factor_that_is_none_is_refused(http: httpx.AsyncClient, factor: str) -> None:
    refused = await http.post(f"/admin/slow{factor}")
    assert refused.status_code == 400
    assert "factor" in refused.json()["error"]["message"]
