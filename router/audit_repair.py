"""The repair of what an audit found: a replica's own block list takes the place of what is believed of it.

Owns the asking, and the words for what came of it. Must never spread anything but the replica's own word.

With a Redis the block list goes there, and reaches every router through the log. Without one, each router that was
wrong is asked to fetch it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp
import msgspec

from radix.feed import Outcome
from router.audit import AuditReport, ReplicaReport
from router.audit_places import REDIS, UNANSWERED, redis_errors, words
from router.joins import fetch_block_list

if TYPE_CHECKING:
    from radix.redis_tree import RedisTree

TRIES = 5  # of a block list that was overtaken by reports on its way
RETRY_S = 0.2


class Repair(msgspec.Struct, frozen=True):
    """What was done about one replica, at one place. `problem`: why it was not."""

    replica: str
    place: str
    problem: str = ""


async def repair(report: AuditReport, http: aiohttp.ClientSession, tree: RedisTree | None) -> Sequence[Repair]:
    """One for each replica with differences, or for each router that was wrong about it."""
    repairs: list[Repair] = []
    for replica in report.replicas:
        if not replica.differences:
            continue
        if tree is not None:
            repairs.append(Repair(replica.name, REDIS, await restore_tree(replica.url, http, tree)))
            continue
        for control, found in replica.places.items():
            if found.differences:
                repairs.append(Repair(replica.name, control, await _ask(replica, http, control)))
    return repairs


async def restore_tree(url: str, http: aiohttp.ClientSession, tree: RedisTree) -> str:
    """Hands the block list of the replica at `url` to Redis; returns what went wrong, empty if nothing did.

    A replica so busy that its reports overtake its block list is left to hand it in by itself, in order with them.
    """
    from radix.redis_link import explain

    for tries_left in reversed(range(TRIES)):
        try:
            snapshot = await fetch_block_list(http, url)
            outcome = await tree.restore(snapshot)
            if outcome is Outcome.STALE and not tries_left and await tree.doubt(snapshot.replica, snapshot.epoch):
                return ""
        except redis_errors() as error:
            return f"Redis does not take its block list: {explain(error)}"
        except UNANSWERED as error:
            return f"its block list cannot be fetched from {url}: {words(error)}"
        if outcome is Outcome.APPLIED:
            return ""
        if outcome is Outcome.UNKNOWN:
            return "this incarnation is not registered in Redis; it registers by itself when it renews its lease"
        await asyncio.sleep(RETRY_S)
    return "its reports overtook its block list each time; try again"


async def _ask(replica: ReplicaReport, http: aiohttp.ClientSession, control: str) -> str:
    """Has the router fetch the replica's block list anew; returns what went wrong, if anything."""
    try:
        async with http.post(f"{control}/replicas/{quote(replica.name, safe='')}/resync") as response:
            return "" if response.status < 300 else f"the router answered {response.status}: {await response.text()}"
    except UNANSWERED as error:
        return f"the router does not answer: {words(error)}"
