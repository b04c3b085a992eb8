"""Measures the prefix index: how fast it answers, takes reports and forgets, what it weighs, how long it ever stops.

Owns the index section of `make bench`. Beside the index stands, in the same run, what one would write in five minutes:
a dict from block key to a bitmask of holders; and pygtrie at a size it can bear.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from statistics import median
from typing import ParamSpec, Protocol

import pygtrie

from loadgen.micro.row import Row, in_fresh_process, resident_bytes
from loadgen.micro.traffic import Conversation, Store, Traffic, comb, fresh, short_prompts
from radix.index import PrefixIndex
from radix.predicted import PredictedResidency

P = ParamSpec("P")

BLOCKS = 1_000_000
QUERY_BLOCKS = 512
ROUNDS = 40
MATCH = f"Prefix index: match of {QUERY_BLOCKS} blocks, median µs (goal: 15)"
INGEST = (
    "Prefix index: ns a block; new blocks come 8 to 40 at a time, known ones 157 to 532 (goal: store + remove 1000)"
)
MEMORY = "Prefix index: resident memory, bytes a block (goal: 64)"
PAUSE = "Prefix index: longest single call, ms"
PREDICTED = "Predicted residency: a record, median µs"


class Index(Protocol):
    def add_replica(self) -> int: ...
    def store(self, rid: int, parent: int | None, keys: Sequence[int]) -> None: ...
    def remove(self, rid: int, keys: Sequence[int]) -> None: ...
    def match(self, keys: Sequence[int]) -> dict[int, int]: ...
    def __len__(self) -> int: ...


class BitmaskDict:
    """The plain way: it knows no parents, so an orphan is a root to it, and no replica ever dies at once."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._replicas = 0

    def add_replica(self) -> int:
        self._replicas += 1
        return self._replicas - 1

    def store(self, rid: int, parent: int | None, keys: Sequence[int]) -> None:
        holders, bit = self._holders, 1 << rid
        for key in keys:
            holders[key] = holders.get(key, 0) | bit

    def remove(self, rid: int, keys: Sequence[int]) -> None:
        holders, bit = self._holders, 1 << rid
        for key in keys:
            left = holders.get(key, 0) & ~bit
            if left:
                holders[key] = left
            else:
                holders.pop(key, None)

    def match(self, keys: Sequence[int]) -> dict[int, int]:
        overlaps: dict[int, int] = {}
        alive = (1 << self._replicas) - 1
        for done, holders in enumerate(map(self._holders.get, keys)):
            through = alive & (holders or 0)
            if through != alive:
                _note(overlaps, alive ^ through, done)
                alive = through
                if not alive:
                    return overlaps
        _note(overlaps, alive, len(keys))
        return overlaps

    def __len__(self) -> int:
        return len(self._holders)


def _note(overlaps: dict[int, int], mask: int, done: int) -> None:
    while mask and done:
        low = mask & -mask
        overlaps[low.bit_length() - 1] = done
        mask ^= low


class Clock:
    """Times calls one by one: their sum and the longest, seconds."""

    def __init__(self) -> None:
        self.sum = self.longest = 0.0
        self.blocks = 0

    def call(self, blocks: int, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        started = time.perf_counter()
        function(*args, **kwargs)
        took = time.perf_counter() - started
        self.sum += took
        self.longest = max(self.longest, took)
        self.blocks += blocks

    @property
    def ns_a_block(self) -> float:
        return self.sum / self.blocks * 1e9 if self.blocks else 0.0


def index_section() -> list[Row]:
    return [
        *in_fresh_process(speed, "index", 64),
        *in_fresh_process(speed, "dict of bitmasks", 64),
        *in_fresh_process(speed, "index", 256),
        *in_fresh_process(comb_speed),
        *in_fresh_process(trie_speed),
        *[Row(MEMORY, shape, {kind: in_fresh_process(weight, kind, shape) for kind in KINDS}) for shape in SHAPES],
        *in_fresh_process(predicted_cost),
    ]


KINDS: dict[str, Callable[[], Index]] = {"index": PrefixIndex, "dict of bitmasks": BitmaskDict}
SHAPES: dict[str, Callable[[], Iterator[Store]]] = {
    "conversations, 64 replicas": lambda: Traffic(64, BLOCKS, keep=False).stores(),
    "conversations, 256 replicas": lambda: Traffic(256, BLOCKS, keep=False).stores(),
    "prompts of 8 blocks, nothing shared": lambda: short_prompts(64, BLOCKS, 8),
    "a branch after each block (199k blocks)": lambda: comb(64, 100, 1000),
}


def speed(kind: str, replicas: int) -> list[Row]:
    index, traffic = KINDS[kind](), Traffic(replicas, BLOCKS, keep=True)
    rids = [index.add_replica() for _ in range(replicas)]
    gc.disable()  # its pauses are a table column of their own
    known, new, removal, single = Clock(), Clock(), Clock(), Clock()
    for store in traffic.stores():
        clock = new if store.new else known
        clock.call(len(store.keys), index.store, rids[store.replica], store.parent, store.keys)
    what = f"{kind}, {replicas} replicas, {len(index) / 1e6:.2f}M blocks"
    rows = [Row(MATCH, what, match_medians(index, traffic.kept))]
    Random(1).shuffle(traffic.kept)
    for number, talk in enumerate(traffic.kept[:6000]):
        tail = talk.turns[:-17:-1].tolist()
        for keys in [tail] if number % 2 else [[key] for key in tail]:
            clock = removal if number % 2 else single
            clock.call(len(keys), index.remove, rids[talk.replica], keys)
    ingest = {
        "store new": new.ns_a_block,
        "store known": known.ns_a_block,
        "remove 16": removal.ns_a_block,
        "remove 1": single.ns_a_block,
        "store + remove": new.ns_a_block + removal.ns_a_block,
    }
    pause = {
        "store": max(new.longest, known.longest) * 1e3,
        "remove": max(removal.longest, single.longest) * 1e3,
        "full garbage collection": collection_ms(),
    }
    if isinstance(index, PrefixIndex):
        index.retire_replica(rids[0])
        sweep = Clock()
        while index._slots.retired:
            sweep.call(1, index.sweep, 1000)
        pause["sweep of 1000 runs"] = sweep.longest * 1e3
    return [*rows, Row(INGEST, what, ingest), Row(PAUSE, what, pause)]


def collection_ms() -> float:
    """What the collector needs for all of this process; the index is most of it."""
    started = time.perf_counter()
    gc.collect()
    return (time.perf_counter() - started) * 1e3


def match_medians(index: Index, talks: Iterable[Conversation]) -> dict[str, float]:
    long = [path for path in (talk.path() for talk in talks) if len(path) >= QUERY_BLOCKS][:200]
    random = Random(2)
    full = [path[:QUERY_BLOCKS] for path in long]
    half = [path[: QUERY_BLOCKS // 2] + fresh(random, QUERY_BLOCKS // 2) for path in full]
    none = [fresh(random, QUERY_BLOCKS) for _ in full]
    return {name: median_us(index.match, queries) for name, queries in (("full", full), ("half", half), ("none", none))}


def median_us(function: Callable[[Sequence[int]], object], queries: Sequence[Sequence[int]]) -> float:
    times = []
    for _ in range(ROUNDS):
        for query in queries:
            started = time.perf_counter()
            function(query)
            times.append(time.perf_counter() - started)
    return median(times) * 1e6


def comb_speed() -> list[Row]:
    """The unkindest cut: a branch after each block, so that a match visits as many runs as blocks."""
    index, clock = PrefixIndex(), Clock()
    rid = index.add_replica()
    chains = []
    gc.disable()
    for store in comb(1, QUERY_BLOCKS, 100):
        clock.call(len(store.keys), index.store, rid, store.parent, store.keys)
        if store.parent is None:
            chains.append(store.keys)
    what = f"index, a branch after each block, {len(index) / 1e6:.2f}M blocks"
    return [
        Row(MATCH, what, {"full": median_us(index.match, chains)}),
        Row(INGEST, what, {"store new": clock.ns_a_block}),
        Row(PAUSE, what, {"store": clock.longest * 1e3, "full garbage collection": collection_ms()}),
    ]


def trie_speed() -> list[Row]:
    trie, random = pygtrie.Trie(), Random(3)
    paths = [tuple(fresh(random, QUERY_BLOCKS)) for _ in range(20)]
    for path in paths:
        for end in range(1, QUERY_BLOCKS + 1):
            trie[path[:end]] = 1
    return [Row(MATCH, "pygtrie, 0.01M blocks, one holder", {"full": median_us(trie.longest_prefix, paths)})]


def weight(kind: str, shape: str) -> float:
    """Bytes a block, everything counted that the process grew by."""
    stores = SHAPES[shape]()
    first = next(stores)
    empty = resident_bytes()
    index = KINDS[kind]()
    rids = [index.add_replica() for _ in range(256)]
    index.store(rids[first.replica], first.parent, first.keys)
    for store in stores:
        index.store(rids[store.replica], store.parent, store.keys)
    return (resident_bytes() - empty) / len(index)


def predicted_cost() -> list[Row]:
    random, prompts = Random(4), 100_000
    empty = resident_bytes()
    residency = PredictedResidency(capacity_blocks=1 << 20, ttl_s=120.0)
    rids = [residency.add_replica() for _ in range(4)]
    for number in range(prompts):
        residency.record(rids[number % 4], fresh(random, 8), number / 1000)
    size = (resident_bytes() - empty) / len(residency.index)
    plain, rid = PrefixIndex(), 0
    rid = plain.add_replica()
    new = [fresh(random, 16) for _ in range(5000)]
    shared = fresh(random, 40)
    long = [shared + fresh(random, 88) for _ in range(500)]
    full = PredictedResidency(capacity_blocks=16 * len(new), ttl_s=120.0)
    full_rid = full.add_replica()
    for keys in [fresh(random, 16) for _ in range(len(new))]:
        full.record(full_rid, keys, 0.0)
    figures = {
        "16 new blocks": once_us(lambda keys: residency.record(rids[0], keys, 100.0), new),
        "the same, index alone": once_us(lambda keys: plain.store(rid, None, keys), new),
        "the same, 16 others pushed out": once_us(lambda keys: full.record(full_rid, keys, 1.0), new),
    }
    once_us(lambda keys: residency.record(rids[1], keys, 100.0), long)
    figures["128 known blocks"] = once_us(lambda keys: residency.record(rids[1], keys, 100.5), long)
    return [
        Row(PREDICTED, "record", figures),
        Row(MEMORY, "predicted: 100k prompts of 8 blocks, LRU included", {"index": size}),
    ]


def once_us(function: Callable[[Sequence[int]], object], queries: Sequence[Sequence[int]]) -> float:
    times = []
    for query in queries:
        started = time.perf_counter()
        function(query)
        times.append(time.perf_counter() - started)
    return median(times) * 1e6
