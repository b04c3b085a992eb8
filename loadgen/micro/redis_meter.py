"""What Redis and this process spend, from one moment to another, and the longest that a script kept Redis.

Owns those figures. A redis-server that is asked for its longest script must log all slow ones (SLOWLOG_SETTINGS).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from radix.redis_tree import RedisTree

SLOWLOG_SETTINGS = ("slowlog-log-slower-than 100", "slowlog-max-len 100000")


@dataclass(frozen=True)
class Spent:
    """`seconds` on the clock, and the CPU seconds of Redis and of this process."""

    seconds: float
    redis_s: float
    own_s: float


class Meter:
    """`begin` and then `spent`, as often as you like."""

    def __init__(self, tree: RedisTree) -> None:
        self._client = tree.link.client
        self._before = (0.0, 0.0, 0.0)

    async def begin(self) -> None:
        await self._client.slowlog_reset()
        self._before = await self._now()

    async def spent(self) -> Spent:
        """Since `begin`."""
        return Spent(*(now - before for now, before in zip(await self._now(), self._before, strict=True)))

    async def longest_script_ms(self) -> float:
        """Since `begin`; 0 when none took 100 µs."""
        slow: Any = await self._client.slowlog_get(-1)
        return max((entry["duration"] for entry in slow), default=0) / 1e3

    async def _now(self) -> tuple[float, float, float]:
        info: Any = await self._client.info("cpu")
        return time.perf_counter(), info["used_cpu_user"] + info["used_cpu_sys"], time.process_time()
