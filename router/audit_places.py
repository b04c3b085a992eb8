"""Where the audit looks: a replica's own block list, the tree in Redis, and what a router believes.

Owns the questions and the words for every way in which they stay unanswered. Must never change anything, and never
raise for what it meets: an audit reports it.
"""

from __future__ import annotations

import os
from array import array
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp
import msgspec

from radix.events import Snapshot, decode_snapshot, unpack_keys
from router.audit import Look
from router.joins import fetch_block_list

if TYPE_CHECKING:
    from radix.redis_tree import Incarnation, RedisTree

REDIS = "Redis"
UNANSWERED = (aiohttp.ClientError, OSError, TimeoutError, ValueError)


class _Failure(msgspec.Struct):
    message: str = ""


class _Refused(msgspec.Struct):
    error: _Failure = msgspec.field(default_factory=_Failure)


class _Standing(msgspec.Struct):
    name: str
    url: str
    joined: bool = False
    reports: str = ""


class _Fleet(msgspec.Struct):
    replicas: list[_Standing]


async def held_by(http: aiohttp.ClientSession, name: str, url: str) -> Look:
    """What the replica at `url` says that it holds."""
    try:
        snapshot = await fetch_block_list(http, url)
    except UNANSWERED as error:
        return Look(problem=f"cannot be reached at {url}: {words(error)}")
    if snapshot.replica != name:
        return Look(problem=f"at {url} answers another replica, {snapshot.replica!r}")
    return _look(snapshot)


class RouterPlace:
    """One router, by its control address. `silent`: members of its fleet that make no reports, so are not audited."""

    def __init__(self, http: aiohttp.ClientSession, control: str) -> None:
        self.label = control
        self.problem = ""
        self.members: dict[str, str] = {}
        self.silent: tuple[str, ...] = ()
        self._http = http
        self._standings: dict[str, str] = {}

    async def refresh(self) -> None:
        try:
            async with self._http.get(f"{self.label}/fleet") as response:
                response.raise_for_status()
                fleet = msgspec.json.decode(await response.read(), type=_Fleet).replicas
        except UNANSWERED as error:
            self.problem = f"the router does not tell its fleet: {words(error)}"
            return
        self.problem = ""
        self.members = {replica.name: replica.url for replica in fleet if replica.joined}
        self.silent = tuple(replica.name for replica in fleet if not replica.joined)
        self._standings = {replica.name: replica.reports for replica in fleet}

    async def believed(self, name: str) -> Look:
        if self.problem:
            return Look(problem="the router is away")
        try:
            async with self._http.get(f"{self.label}/replicas/{quote(name, safe='')}/residency") as response:
                body = await response.read()
                if response.status == 404:
                    return Look(problem="not registered with this router", absent=True)
                if response.status >= 400:
                    return Look(problem=_message(body) or f"the router answered {response.status}")
                look = _look(decode_snapshot(body))
        except UNANSWERED as error:
            return Look(problem=f"the router does not answer: {words(error)}")
        standing = self._standings.get(name, "")
        return Look(look.keys, look.epoch, note=standing if standing.startswith("demoted") else "")


class RedisPlace:
    """The tree in Redis, read whole at each refresh."""

    label = REDIS

    def __init__(self, tree: RedisTree) -> None:
        self.problem = ""
        self.members: dict[str, str] = {}
        self._tree = tree
        self._incarnations: dict[str, Incarnation] = {}
        self._pairs: dict[int, array[int]] = {}  # by slot: keys and parents by turns

    async def refresh(self) -> None:
        from radix.redis_link import explain

        try:
            incarnations, pairs = await self._read()
        except redis_errors() as error:
            self.problem = f"no answer from {self._tree.link.shown}: {explain(error)}"
            return
        self.problem = ""
        self._incarnations = {member.said.name: member for member in incarnations}
        self._pairs = pairs
        self.members = {name: member.said.url for name, member in self._incarnations.items()}

    async def believed(self, name: str) -> Look:
        if self.problem:
            return Look(problem="Redis is away")
        found = self._incarnations.get(name)
        if found is None:
            return Look(problem="not registered in Redis", absent=True)
        keys = set(self._pairs[found.slot][0::2]) if found.slot in self._pairs else set()
        return Look(keys, found.said.epoch, note="" if found.slot else "its block list has not come yet")

    async def _read(self) -> tuple[list[Incarnation], dict[int, array[int]]]:
        """All nodes in one pass, and then the members; a slot that changed hands is right at the next look."""
        pairs: dict[int, array[int]] = {}
        async for slot, packed in self._tree.dump():
            pairs.setdefault(slot, array("Q")).extend(unpack_keys(packed))
        *_, incarnations = await self._tree.open()
        return incarnations, pairs


def redis_errors() -> tuple[type[Exception], ...]:
    """All that Redis may fail with. A function, so that redis-py is loaded only where it is needed."""
    from redis.exceptions import RedisError

    from radix.redis_link import UNAVAILABLE

    return *UNAVAILABLE, RedisError


def _look(snapshot: Snapshot) -> Look:
    return Look({key for event in snapshot.stored for key in event.keys}, snapshot.epoch)


def words(error: Exception) -> str:
    """Why somebody did not answer."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP {error.status} {error.message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno:
        return os.strerror(error.os_error.errno).lower()
    return str(error) or type(error).__name__


def _message(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Refused).error.message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
