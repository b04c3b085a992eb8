"""Measures a mirror of the tree in Redis: how fast it starts, how far it lags, how long it ever keeps its event loop.

Owns those rows of `make bench`. The mirror has a process of its own, as in a router; those who report have another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from inspect import isawaitable
from statistics import median, quantiles
from typing import Any

from loadgen.micro.redis_meter import Meter
from loadgen.micro.reporters import REPORTER, Reporter, joined_reporters, ns_of_key, opened
from loadgen.micro.row import Row, on_a_loop
from radix.index import PrefixIndex
from radix.members import Member
from radix.mirror import Mirror
from radix.redis_tree import RedisTree
from radix.tasks import end_tasks

STARTS = 3
LAG_S = 12.0
LAG_RATE = 50_000
LAG_BLOCKS = 64  # in a batch: at this rate, and with 16 replicas, each reports every 20 ms
TICK_S = 0.002
WAIT_S = 60.0
WATCHING = "bench:watching"

START = "Mirror: from nothing to in step with Redis (goal: 5 s)"
LAG = "Mirror: ms from the sending of a batch until the index has it"


class Watched(PrefixIndex):
    """An index that notes how old each report is when it has it, in ms, from when it is told to on."""

    def __init__(self) -> None:
        super().__init__()
        self.lags: list[float] = []
        self.since_ns = 1 << 64

    def store(self, rid: int, parent: int | None, keys: Sequence[int]) -> None:
        super().store(rid, parent, keys)
        now, sent = time.perf_counter_ns(), ns_of_key(keys[0])
        if self.since_ns <= sent <= now:
            self.lags.append((now - sent) / 1e6)


class Ticker:
    """The longest that the event loop was kept from its next turn, and the most CPU time that went by in one; ms."""

    def __init__(self) -> None:
        self.stall = self.stall_cpu = 0.0

    async def run(self) -> None:
        while True:
            wall, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(TICK_S)
            self.stall = max(self.stall, (time.perf_counter() - wall - TICK_S) * 1e3)
            self.stall_cpu = max(self.stall_cpu, (time.thread_time() - cpu) * 1e3)


def mirror_rows(url: str, replicas: int, capacity: int) -> list[Row]:
    starts = [on_a_loop(start, url) for _ in range(STARTS)]
    rate = f"{replicas} replicas, {LAG_RATE:,} new blocks/s"
    return [
        Row(START, f"median of {STARTS}", {column: median(each[column] for each in starts) for column in starts[0]}),
        Row(START, "worst", {column: max(each[column] for each in starts) for column in starts[0]}),
        Row(LAG, rate, lag(url, replicas, 0)),
        Row(LAG, f"{rate}, as many removed", lag(url, replicas, capacity)),
    ]


async def start(url: str) -> dict[str, float]:
    async with opened(url) as tree:
        meter = Meter(tree)
        await meter.begin()
        async with mirror_of(tree, PrefixIndex()) as (_, ticker):
            spent = await meter.spent()
            return {
                "seconds": spent.seconds,
                "own CPU, s": spent.own_s,
                "Redis' CPU, s": spent.redis_s,
                "longest stall, ms": ticker.stall,
                "of CPU": ticker.stall_cpu,
                "longest script, ms": await meter.longest_script_ms(),
            }


def is_reporter(member: Member) -> bool:
    """And its block list is known."""
    return member.name.startswith(REPORTER) and member.slot > 0


def lag(url: str, replicas: int, capacity: int) -> dict[str, float]:
    with ThreadPoolExecutor(2) as threads:
        watching = threads.submit(on_a_loop, watch, url, replicas)
        pacing = threads.submit(on_a_loop, pace, url, replicas, capacity)
        return watching.result() | pacing.result()


async def watch(url: str, replicas: int) -> dict[str, float]:
    """From when the mirror knows all reporters until the first of them leaves."""
    index = Watched()
    async with opened(url) as tree, mirror_of(tree, index) as (mirror, ticker):
        await until(lambda: sum(is_reporter(member) for member in mirror.members.values()) == replicas)
        gone = asyncio.Event()
        mirror.subscribe(lambda member: None if member.name in mirror.members else gone.set())
        ticker.stall = ticker.stall_cpu = 0.0
        meter = Meter(tree)
        await meter.begin()
        index.since_ns = time.perf_counter_ns()
        await tree.link.client.set(WATCHING, "1")
        async with asyncio.timeout(LAG_S + WAIT_S):
            await gone.wait()
        spent = await meter.spent()
    cuts = quantiles(index.lags, n=100)
    return {
        "p50": cuts[49],
        "p99": cuts[98],
        "max": max(index.lags),
        "longest stall": ticker.stall,
        "of CPU": ticker.stall_cpu,
        "mirror busy, %": spent.own_s / spent.seconds * 100,
    }


async def pace(url: str, replicas: int, capacity: int) -> dict[str, float]:
    async with opened(url) as tree, joined_reporters(url, replicas, LAG_BLOCKS, capacity) as reporters:
        await until(lambda: tree.link.client.delete(WATCHING))
        meter = Meter(tree)
        await meter.begin()
        every_s = replicas * LAG_BLOCKS / LAG_RATE
        async with asyncio.TaskGroup() as group:
            for number, reporter in enumerate(reporters):
                group.create_task(report_every(reporter, every_s, number / replicas * every_s))
        spent = await meter.spent()
        batches = sum(reporter.batches for reporter in reporters)
    return {
        "blocks/s": batches * LAG_BLOCKS / spent.seconds,
        "Redis busy, %": spent.redis_s / spent.seconds * 100,
        "reporters busy, %": spent.own_s / spent.seconds * 100,
    }


async def report_every(reporter: Reporter, every_s: float, offset_s: float) -> None:
    """One that is late sends at once, until it has caught up."""
    begun = time.perf_counter() + offset_s
    for turn in range(int(LAG_S / every_s)):
        await asyncio.sleep(max(begun + turn * every_s - time.perf_counter(), 0))
        await reporter.report()


@asynccontextmanager
async def mirror_of(tree: RedisTree, index: PrefixIndex) -> AsyncIterator[tuple[Mirror, Ticker]]:
    """In step with Redis, and a ticker that runs since before its start."""
    mirror, ticker = Mirror(tree, index, time.monotonic), Ticker()
    tasks = [asyncio.create_task(ticker.run()), asyncio.create_task(mirror.run())]
    try:
        await until(lambda: mirror.current)
        yield mirror, ticker
    finally:
        await end_tasks(*tasks)


async def until(done: Callable[[], Any]) -> None:
    """Asks again and again; what is asked may be a coroutine. Raises TimeoutError after a minute."""
    async with asyncio.timeout(WAIT_S):
        while True:
            answer = done()
            if await answer if isawaitable(answer) else answer:
                return
            await asyncio.sleep(TICK_S)
