"""Measures the tree in Redis: what it weighs, how fast it takes batches and block lists, and what sweeping costs.

Owns the redis section of `make bench`, and the redis-server that is started for it: all rows are of one that holds a
tree of a million nodes and more. What Redis itself needs is told by its CPU time, since on a machine with few cores
those who report to it are mostly the slower ones.
"""

from __future__ import annotations

import asyncio
import sys
import time
from random import Random
from typing import Any

from loadgen.micro.mirror import mirror_rows
from loadgen.micro.redis_meter import SLOWLOG_SETTINGS, Meter
from loadgen.micro.reporters import Reporter, join, joined_reporters, opened, send
from loadgen.micro.row import Row, on_a_loop
from loadgen.micro.traffic import Traffic
from loadgen.redis_process import NoRedisServer, RedisServer, redis_server_binary
from radix.events import KEY_BYTES, BlockStored, pack_keys
from radix.redis_tree import RedisTree

BLOCKS = 1_000_000
HOLDERS = 64
FILL_KEYS = 512
REPLICAS = 16
CAPACITY = 32_768
LISTS = (32_768, 262_144)
CHAIN_BLOCKS = 256
APPLY_S = 3.0
SLICE_BUCKETS = 128  # as router/housekeeping.py does
POOLS = {"new blocks": 0, "new blocks, as many removed": CAPACITY}

MEMORY = "Redis tree: memory, bytes a node (goal: 100)"
LIST = "Redis tree: a replica hands in its block list, none of it known"
APPLY = "Redis tree: batches applied; each replica awaits one after the other, all are tasks of one process"
SWEEP = f"Redis tree: sweeping up after replicas that left, {SLICE_BUCKETS} of 65,536 buckets in a script"


def redis_section() -> list[Row]:
    """Empty, with a word on stderr, where there is no redis-server."""
    try:
        redis_server_binary()
    except NoRedisServer as missing:
        print(f"section redis is left out: {missing}", file=sys.stderr)
        return []
    with RedisServer(settings=SLOWLOG_SETTINGS) as server:
        url = server.url
        cases = [(replicas, blocks, what) for what in POOLS for blocks in (16, 256) for replicas in (1, REPLICAS)]
        return [
            Row(MEMORY, f"{HOLDERS} replicas, shared documents", on_a_loop(memory, url)),
            *mirror_rows(url, REPLICAS, CAPACITY),
            *[Row(LIST, f"{blocks:,} blocks", on_a_loop(hand_in, url, blocks)) for blocks in LISTS],
            *[
                Row(APPLY, f"{replicas} × {blocks} {what}", on_a_loop(apply, url, replicas, blocks, POOLS[what]))
                for replicas, blocks, what in cases
            ],
            Row(SWEEP, "a round", on_a_loop(sweep, url)),
        ]


async def memory(url: str) -> dict[str, float]:
    async with opened(url) as tree:
        empty = await used_bytes(tree)
        started = time.perf_counter()
        nodes, holders = await fill(tree)
        took = time.perf_counter() - started
        await tree.link.client.slowlog_reset()
        log: Any = await tree.link.client.memory_usage(f"{tree.prefix}:log", samples=0)
        used = await used_bytes(tree) - empty - log
    return {
        "bytes a node": used / nodes,
        "nodes, millions": nodes / 1e6,
        "holders a node": holders / nodes,
        "the log, MB": log / 1e6,
        "seconds to fill": took,
    }


async def used_bytes(tree: RedisTree) -> int:
    info: Any = await tree.link.client.info("memory")
    return int(info["used_memory"])


async def fill(tree: RedisTree) -> tuple[int, int]:
    """The batches of HOLDERS replicas. Returns how many nodes there are, and how many holders all of them have."""
    names = [f"holder {number}" for number in range(HOLDERS)]
    waiting: list[list[BlockStored]] = [[] for _ in names]
    held: list[set[int]] = [set() for _ in names]
    seqs = [0] * HOLDERS

    async def flush(number: int) -> None:
        await send(tree, names[number], seqs[number], waiting[number])
        seqs[number] += 1
        waiting[number] = []

    for name in names:
        await join(tree, name)
    for store in Traffic(HOLDERS, BLOCKS, keep=False).stores():
        number = store.replica
        held[number].update(store.keys)
        waiting[number].append(BlockStored(store.parent, pack_keys(store.keys)))
        if sum(len(event.packed) for event in waiting[number]) >= KEY_BYTES * FILL_KEYS:
            await flush(number)
    for number in range(HOLDERS):
        await flush(number)
    return len(set().union(*held)), sum(map(len, held))


async def hand_in(url: str, blocks: int) -> dict[str, float]:
    random = Random(blocks)
    chains = [random.randbytes(KEY_BYTES * CHAIN_BLOCKS) for _ in range(blocks // CHAIN_BLOCKS)]
    async with opened(url) as tree:
        meter = Meter(tree)
        await meter.begin()
        await join(tree, "lister", [BlockStored(None, chain) for chain in chains])
        spent = await meter.spent()
        longest = await meter.longest_script_ms()
        await tree.leave("lister", 1)
        await swept(tree)
    return {
        "seconds": spent.seconds,
        "Redis' CPU, s": spent.redis_s,
        "blocks/s": blocks / spent.seconds,
        "longest script, ms": longest,
    }


async def apply(url: str, replicas: int, blocks: int, capacity: int) -> dict[str, float]:
    async with opened(url) as tree:
        meter = Meter(tree)
        async with joined_reporters(url, replicas, blocks, capacity) as reporters:
            await meter.begin()
            batches = sum(await asyncio.gather(*(report_for(reporter, APPLY_S) for reporter in reporters)))
            spent = await meter.spent()
            longest = await meter.longest_script_ms()
        await swept(tree)
    return {
        "batches/s": batches / spent.seconds,
        "new blocks/s": batches * blocks / spent.seconds,
        "Redis' CPU, µs a batch": spent.redis_s / batches * 1e6,
        "Redis busy, %": spent.redis_s / spent.seconds * 100,
        "reporters busy, %": spent.own_s / spent.seconds * 100,
        "longest script, ms": longest,
    }


async def report_for(reporter: Reporter, seconds: float) -> int:
    """How many batches."""
    until = time.perf_counter() + seconds
    batches = 0
    while time.perf_counter() < until:
        await reporter.report()
        batches += 1
    return batches


async def sweep(url: str) -> dict[str, float]:
    async with opened(url) as tree:
        for number in range(HOLDERS // 2):
            await tree.leave(f"holder {number}", 1)
        meter = Meter(tree)
        await meter.begin()
        await swept(tree)
        spent = await meter.spent()
        return {
            "seconds": spent.seconds,
            "Redis' CPU, s": spent.redis_s,
            "longest script, ms": await meter.longest_script_ms(),
        }


async def swept(tree: RedisTree) -> None:
    while await tree.sweep(SLICE_BUCKETS):
        pass
