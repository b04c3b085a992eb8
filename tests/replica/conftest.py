"""A replica as users meet it: on a real socket, with the simulated model running very fast."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from replica.service import ReplicaService
from replica.settings import Settings
from replica.simulated import TimingModel

QUICK = TimingModel(step_s=1e-4, prefill_rate=1e7, decode_s=0, context_token_s=0)


@pytest.fixture
async def service() -> AsyncIterator[ReplicaService]:
    service = ReplicaService(Settings("r1", kv_blocks=512, max_model_len=4096, timing=QUICK, drain_s=0.1))
    await service.start()
    yield service
    await service.stop()


@pytest.fixture
async def http(service: ReplicaService) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=20) as client:
        yield client
