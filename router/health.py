"""Which replicas live: one watcher for each member of the fleet, which asks it every few seconds and at once when the
data plane suspects it.

Owns those tasks and what they learn (health, models, the bundled replica's account of itself). Must never route.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp
import msgspec

from radix.events import Registration
from router.fleet import Fleet, Replica, State

log = logging.getLogger("radixgate.health")

SLOWEST_RETRY_S = 2.0
FIRST_RETRY_S = 0.1
PATIENCE = 3  # time-outs in a row before a replica that was up counts as down


class Card(msgspec.Struct):
    id: str


class HealthProber:
    """Watches every replica from the moment it is in the fleet until it has left."""

    def __init__(
        self, fleet: Fleet, http: aiohttp.ClientSession, *, interval_s: float = 5.0, timeout_s: float = 2.0
    ) -> None:
        self._fleet = fleet
        self._http = http
        self._interval_s = interval_s
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._watchers: dict[Replica, asyncio.Task[None]] = {}
        self._suspected: dict[Replica, asyncio.Event] = {}
        fleet.subscribe(self._on_change)

    def suspect(self, replica: Replica) -> None:
        """Look at this replica now rather than at its next turn."""
        event = self._suspected.get(replica)
        if event is not None:
            event.set()

    async def close(self) -> None:
        watchers = list(self._watchers.values())
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)

    def _on_change(self, replica: Replica) -> None:
        if self._fleet.get(replica.name) is not replica:
            watcher = self._watchers.pop(replica, None)
            self._suspected.pop(replica, None)
            if watcher is not None:
                watcher.cancel()
        elif replica not in self._watchers:
            self._suspected[replica] = asyncio.Event()
            self._watchers[replica] = asyncio.get_running_loop().create_task(self._watch(replica))

    async def _watch(self, replica: Replica) -> None:
        suspected = self._suspected[replica]
        silences = 0
        retry_s = FIRST_RETRY_S
        while True:
            suspected.clear()
            try:
                await self._look(replica)
            except TimeoutError:
                silences += 1
                if silences >= PATIENCE or replica.state is State.UNKNOWN:
                    self._down(replica, "no answer to health probes")
            except (aiohttp.ClientError, OSError) as error:
                silences = 0
                self._down(replica, str(error) or type(error).__name__)
            except Exception:
                log.exception("replica %s: a health probe failed", replica.name)
            else:
                silences = 0
            if replica.state is State.UP:
                retry_s = FIRST_RETRY_S
                pause_s = self._interval_s
            else:
                pause_s = retry_s = min(retry_s * 2, SLOWEST_RETRY_S)
            try:
                async with asyncio.timeout(pause_s):
                    await suspected.wait()
            except TimeoutError:
                pass

    def _down(self, replica: Replica, reason: str) -> None:
        if replica.state is not State.DOWN:
            log.warning("replica %s is down: %s", replica.name, reason)
        self._fleet.mark_down(replica, reason)
        replica.reason = reason

    async def _look(self, replica: Replica) -> None:
        """Raises when the replica is not healthy."""
        async with self._http.get(replica.address.url + "/health", timeout=self._timeout) as response:
            if response.status >= 500:
                raise aiohttp.ClientError(f"GET /health answered {response.status}")
        if replica.state is not State.UP:
            if replica.registration is None:
                replica.registration = await self._account(replica)
            await self._learn_models(replica)
            log.info("replica %s is up, serving %s", replica.name, ", ".join(replica.serves or ("any model",)))
            self._fleet.mark_up(replica)
        else:
            await self._learn_models(replica)

    async def _learn_models(self, replica: Replica) -> None:
        cards = await self._json(replica, "/v1/models")
        try:
            data: list[dict[str, Any]] = msgspec.convert(cards, type=dict[str, Any])["data"]
            names = [card.id for card in msgspec.convert(data, type=list[Card])]
        except (msgspec.ValidationError, KeyError):
            return  # no OpenAI server's answer: what is known stays, and if nothing is, the replica may serve anything
        self._fleet.learn_models(replica, names, data)

    async def _account(self, replica: Replica) -> Registration | None:
        """A bundled replica tells its block size and tokenizer; other servers know nothing of the question."""
        try:
            account = msgspec.convert(await self._json(replica, "/radixgate/info"), type=Registration)
        except msgspec.ValidationError:
            return None
        if account.block_size < 1:
            return None
        replica.load.capacity_tokens = account.capacity_blocks * account.block_size
        return account

    async def _json(self, replica: Replica, path: str) -> object:
        """The decoded answer, or None when there is no JSON to be had at that path."""
        async with self._http.get(replica.address.url + path, timeout=self._timeout) as response:
            if response.status != 200:
                return None
            body = await response.read()
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
