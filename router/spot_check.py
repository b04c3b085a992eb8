"""One look at a few blocks of one replica: as the router knows them, and as the replica holds them.

Owns the questions to the replica, and the second look that tells a difference from what is only on its way. Must never
compare a replica's answers with what is known of another incarnation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import aiohttp
import msgspec

from radix.events import pack_keys, unpack_keys
from radix.index import PrefixIndex
from radix.inspection import holds, sample
from router.fleet import Replica

SAMPLE = 256
SLICES = 8  # of a sample, where the replica holds little of what the index has
TIMEOUT_S = 5.0
EPOCH = "x-radixgate-epoch"

Believed = Callable[[Replica], tuple[PrefixIndex, int] | None]


class CheckFailed(Exception):
    """The look came to nothing; the message says why."""


class NotAsked(Exception):
    """The replica does not answer such questions, and never will."""


@dataclass(frozen=True, slots=True)
class Found:
    """Blocks: those that were looked at, those that the replica reported and does not hold, those that it holds and did
    not report.
    """

    looked_at: int
    false_positives: int
    false_negatives: int

    @property
    def wrong(self) -> int:
        return self.false_positives + self.false_negatives

    def __str__(self) -> str:
        return (
            f"of {self.looked_at} blocks taken at random, it does not hold {self.false_positives} that it reported, "
            f"and did not report {self.false_negatives} that it holds"
        )


class SpotCheck:
    """Of the incarnation `epoch` of `replica`. `believed` gives the index and the replica's id in it now, or None."""

    def __init__(
        self, replica: Replica, epoch: int, believed: Believed, http: aiohttp.ClientSession, rng: Random
    ) -> None:
        self._replica = replica
        self._epoch = epoch
        self._believed = believed
        self._http = http
        self._random = rng
        self._timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)

    async def run(self, confirm_s: float) -> Found:
        """What differs, and still does `confirm_s` later.

        Raises CheckFailed, NotAsked, and what aiohttp raises when the replica cannot be reached.
        """
        ours = await self._sample()
        held = await self._held(ours)
        theirs = await self._held_sample()
        known = self._known(theirs)
        phantoms = [key for key, there in zip(ours, held, strict=True) if not there]
        strangers = [key for key, there in zip(theirs, known, strict=True) if not there]
        if phantoms or strangers:
            await asyncio.sleep(confirm_s)
            phantoms, strangers = await self._confirmed(phantoms, strangers)
        return Found(len(ours) + len(theirs), len(phantoms), len(strangers))

    async def _confirmed(self, phantoms: list[int], strangers: list[int]) -> tuple[list[int], list[int]]:
        """Those that are still believed and not held, and those that are still held and not known."""
        keys = phantoms + strangers
        held = dict(zip(keys, await self._held(keys), strict=True))
        known = dict(zip(keys, self._known(keys), strict=True))
        return (
            [key for key in phantoms if known[key] and not held[key]],
            [key for key in strangers if held[key] and not known[key]],
        )

    async def _sample(self) -> list[int]:
        """Blocks that the router believes the replica to hold."""
        keys: dict[int, None] = {}
        for _ in range(SLICES):
            index, rid = self._belief()
            keys.update(dict.fromkeys(sample(index, rid, SAMPLE, self._random)))
            if len(keys) >= min(SAMPLE, index.blocks(rid)):
                break
            await asyncio.sleep(0)  # requests go first
        return list(keys)[:SAMPLE]

    def _known(self, keys: Sequence[int]) -> list[bool]:
        index, rid = self._belief()
        return holds(index, rid, keys)

    def _belief(self) -> tuple[PrefixIndex, int]:
        """Where the replica is in the index at this moment."""
        belief = self._believed(self._replica)
        if belief is None:
            raise CheckFailed("the router does not claim to know what it holds")
        return belief

    async def _held(self, keys: Sequence[int]) -> list[bool]:
        """For each key: whether the replica holds that block, as it says."""
        if not keys:
            return []
        answer = await self._ask("POST", "/radixgate/holds", pack_keys(keys))
        if len(answer) != len(keys):
            raise CheckFailed(f"it gave {len(answer)} answers to {len(keys)} questions")
        return [flag == 1 for flag in answer]

    async def _held_sample(self) -> list[int]:
        """Blocks that the replica holds, as it says."""
        answer = await self._ask("GET", f"/radixgate/blocks?sample={SAMPLE}")
        try:
            return unpack_keys(msgspec.msgpack.decode(answer, type=bytes))[:SAMPLE]
        except (msgspec.DecodeError, ValueError) as error:
            raise CheckFailed(f"its sample makes no sense: {error}") from None

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        url = self._replica.address.url + path
        async with self._http.request(method, url, data=body, timeout=self._timeout) as response:
            if response.status in (404, 405, 501):
                raise NotAsked
            response.raise_for_status()
            if response.headers.get(EPOCH) != str(self._epoch):
                raise CheckFailed("another incarnation answered")
            return await response.read()
