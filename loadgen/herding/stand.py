"""Where bursts are run: routers in front of fake replicas, brought to rest before each burst and looked at after it.

Owns the order of one burst, and the figures of where it went. Must never begin a burst while anything of the one before
it counts anywhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from statistics import mean

import aiohttp
import msgspec

from loadgen.herding.bursts import Burst, Shot
from loadgen.herding.client import BurstClient
from loadgen.herding.fake_replicas import FakeReplica, Held
from loadgen.processes import Children

WAIT_S = 20.0
POLL_S = 0.01


class BurstFailed(RuntimeError):
    """A burst did not go as it must; the message says what was missing."""


class Spread(msgspec.Struct, frozen=True):
    """Where one burst went: the busiest replica's share over the mean of all, in requests, in prompt tokens, and in
    those of them that were not cached.

    `hit_rate` is of prompt tokens. `unseen` is the mean, over decisions, of the open requests that the deciding router
    did not know of. `sending_s` and `arriving_s` are how long it took to send the burst, and to see it arrive at the
    replicas.
    """

    requests: float
    prompt: float
    computed: float
    hit_rate: float
    unseen: float
    sending_s: float
    arriving_s: float
    per_replica: dict[str, int]


class _Seen(msgspec.Struct):
    """What a router says of a replica on its control port."""

    name: str
    waiting: int
    decoding: int
    reported_blocks: int


class _Fleet(msgspec.Struct):
    replicas: list[_Seen]


class _Receipt(msgspec.Struct):
    """A decision: when (Unix time), and the load of each candidate as it was known: tokens, waiting, decoding."""

    at: float
    loads: list[tuple[int, int, int]]


class _Receipts(msgspec.Struct):
    receipts: list[_Receipt]


View = dict[str, _Seen]


class Stand:
    """`reported`: routers learn what replicas hold; `shared`: they learn of each other's bookings."""

    def __init__(self, children: Children, controls: Sequence[str], *, reported: bool, shared: bool) -> None:
        self._children = children
        self._controls = controls
        self._reported = reported
        self._shared = shared
        self._held: list[Held] = []
        self._wanted = 0
        self._complete = asyncio.Event()
        self._client: BurstClient
        self._http: aiohttp.ClientSession
        self._replicas: Sequence[FakeReplica] = ()

    async def open(self, stack: AsyncExitStack, client: BurstClient, replicas: Sequence[FakeReplica]) -> None:
        """Must be called once before the first burst; what it opens closes with `stack`."""
        self._client = client
        self._replicas = replicas
        self._http = await stack.enter_async_context(aiohttp.ClientSession())

    def took(self, held: Held) -> None:
        """A replica has a request."""
        self._held.append(held)
        if len(self._held) == self._wanted:
            self._complete.set()

    async def run(self, burst: Burst) -> Spread:
        """Raises BurstFailed, or ChildFailed when a router has ended."""
        for prompt in burst.warm:
            await self._warm(prompt)
        if burst.before:
            await self._send([Shot(0.0, 0, prompt) for prompt in burst.before])
            await self._until("know the requests that are open before the burst", self._knows(len(burst.before)))
        before = len(burst.before)
        began = time.time()
        sending_s = await self._send(burst.shots)
        arriving_s = self._held[-1].arrived - self._held[before].arrived
        spread = self._spread(unseen(await self._known(len(burst.shots), began), before), sending_s, arriving_s)
        await self._release()
        return spread

    async def _warm(self, prompt: list[int]) -> None:
        await self._send([Shot(0.0, 0, prompt)])
        self._held[0].replica.keep(prompt)
        await self._release()

    async def _send(self, shots: Sequence[Shot]) -> float:
        """Until all of them have come to a replica."""
        self._wanted = len(self._held) + len(shots)
        self._complete.clear()
        await self._client.reserve(shots)
        took_s = await self._client.send(shots)
        try:
            async with asyncio.timeout(WAIT_S):
                await self._complete.wait()
        except TimeoutError:
            self._children.check()
            raise BurstFailed(f"{len(self._held)} of {self._wanted} requests came to the replicas") from None
        return took_s

    async def _release(self) -> None:
        """Answers everything, and waits until no router counts any of it."""
        held, self._held = self._held, []
        for request in held:
            request.answer()
        statuses = await self._client.answers()
        if failed := [status for status in statuses if status != 200]:
            raise BurstFailed(f"{len(failed)} of {len(statuses)} requests failed, the first with status {failed[0]}")
        await self._until("come to rest", self._rests)

    def _rests(self, index: int, view: View) -> bool:
        idle = all(seen.waiting == seen.decoding == 0 for seen in view.values())
        known = all(view[replica.name].reported_blocks == replica.blocks for replica in self._replicas)
        return idle and (known or not self._reported)

    def _knows(self, requests: int) -> Callable[[int, View], bool]:
        """Router 0 has them in its own ledger; the others can know only from a shared one."""
        return lambda index, view: (
            sum(seen.waiting for seen in view.values()) == requests or (index > 0 and not self._shared)
        )

    async def _until(self, what: str, holds: Callable[[int, View], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        for index, control in enumerate(self._controls):
            while not holds(index, await self._view(control)):
                self._children.check()
                if time.monotonic() > deadline:
                    raise BurstFailed(f"router {index} did not {what} within {WAIT_S:g} s")
                await asyncio.sleep(POLL_S)

    async def _view(self, control: str) -> View:
        async with self._http.get(f"{control}/fleet") as response:
            fleet = msgspec.json.decode(await response.read(), type=_Fleet)
        return {seen.name: seen for seen in fleet.replicas}

    async def _known(self, decisions: int, began: float) -> list[int]:
        """Open requests that routers knew of at each of their decisions since then (Unix time), in order."""
        found: list[_Receipt] = []
        for control in self._controls:
            async with self._http.get(f"{control}/receipts?limit={decisions}") as response:
                found += msgspec.json.decode(await response.read(), type=_Receipts).receipts
        found.sort(key=lambda receipt: receipt.at)
        return [
            sum(waiting + decoding for _, waiting, decoding in receipt.loads)
            for receipt in found
            if receipt.at >= began
        ]

    def _spread(self, unseen_mean: float, sending_s: float, arriving_s: float) -> Spread:
        prompts: dict[FakeReplica, list[list[int]]] = {replica: [] for replica in self._replicas}
        for held in self._held:
            prompts[held.replica].append(held.prompt())
        requests = [len(listed) for listed in prompts.values()]
        tokens = [sum(map(len, listed)) for listed in prompts.values()]
        computed = [replica.computed(listed) for replica, listed in prompts.items()]
        return Spread(
            requests=_max_over_mean(requests),
            prompt=_max_over_mean(tokens),
            computed=_max_over_mean(computed),
            hit_rate=1 - sum(computed) / sum(tokens),
            unseen=unseen_mean,
            sending_s=sending_s,
            arriving_s=arriving_s,
            per_replica={replica.name: len(listed) for replica, listed in prompts.items()},
        )


def unseen(known: Sequence[int], before: int) -> float:
    """The mean of what was open and not `known` at each decision of a burst, in order.

    Nothing is answered during a burst: open is all that was decided so far, and the requests from before it.
    """
    return mean(max(open_now - seen, 0) for open_now, seen in enumerate(known, before))


def _max_over_mean(shares: Sequence[int]) -> float:
    return max(shares) * len(shares) / sum(shares)
