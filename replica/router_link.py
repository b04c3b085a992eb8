"""The way to one router: the replica registers with its control port, renews the lease and sends the journal's batches.

Owns what is said over HTTP, and in which order: one batch at a time. A router that could not be reached for long misses
batches, sees the gap and asks for a snapshot. Must never keep batches of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import quote

import aiohttp
import msgspec

from radix.events import EventBatch, Registration, encode
from replica.journal import Journal

log = logging.getLogger(__name__)

TIMEOUT = aiohttp.ClientTimeout(total=5, connect=2)  # well under a lease
_GOODBYE_S = 2.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0  # a router that is back is behind for so long; asking it costs next to nothing


class _Lease(msgspec.Struct, frozen=True):
    lease_s: float


class _Code(msgspec.Struct, frozen=True):
    code: str | None = None


class _Problem(msgspec.Struct, frozen=True):
    error: _Code = _Code()


class _Unreachable(Exception):
    """The router did not take what was sent; it is worth trying again later."""


class _Forgotten(Exception):
    """The router does not know this replica any more, or not yet."""


class RouterLink:
    """Reports to one router: `run` as a task, cancel it at the end, then `goodbye`."""

    def __init__(
        self,
        control: str,
        session: aiohttp.ClientSession,
        journal: Journal,
        account: Callable[[], Registration],
    ) -> None:
        self.control = control.rstrip("/")
        self._session = session
        self._journal = journal
        self._account = account
        self._news = journal.subscribe()
        self._next_seq = 0
        self._reachable: bool | None = None

    async def run(self) -> None:
        """Registers and reports for ever; whatever fails is tried again, after longer and longer pauses."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                lease_s = await self._register()
                self._now_reachable()
                await self._report(lease_s)
            except (_Unreachable, _Forgotten) as error:
                if isinstance(error, _Unreachable):
                    self._now_unreachable(error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                pause = _FIRST_PAUSE_S

    async def goodbye(self) -> None:
        """Deregisters, so that the router need not wait for the lease to end."""
        self._journal.unsubscribe(self._news)
        if not self._reachable:
            return
        account = self._account()
        url = f"{self._url(account)}?epoch={account.epoch}"
        try:
            async with asyncio.timeout(_GOODBYE_S), self._session.delete(url):
                pass
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("could not deregister from %s (%s); it will notice when the lease ends", self.control, error)

    async def _register(self) -> float:
        """Seconds that the router's lease lasts."""
        account = self._account()
        body = msgspec.json.encode(account)
        status, answer = await self._send("PUT", self._url(account), body, "application/json")
        if status >= HTTPStatus.BAD_REQUEST:
            raise _Unreachable(f"it refused the registration with status {status}: {_excerpt(answer)}")
        try:
            return max(msgspec.json.decode(answer, type=_Lease).lease_s, 0.1)
        except msgspec.DecodeError:
            return account.lease_s

    async def _report(self, lease_s: float) -> None:
        """Sends batches until the lease needs renewal. Raises _Forgotten when the router asks who this is."""
        loop = asyncio.get_running_loop()
        renewal = loop.time() + lease_s / 3
        while (left := renewal - loop.time()) > 0:
            self._news.clear()
            batch = self._journal.batch(self._next_seq)
            if batch is not None:
                await self._deliver(batch)
                self._next_seq = batch.seq + 1
                continue
            try:
                async with asyncio.timeout(left):
                    await self._news.wait()
            except TimeoutError:
                return

    async def _deliver(self, batch: EventBatch) -> None:
        status, answer = await self._send("POST", f"{self.control}/events", encode(batch), "application/msgpack")
        if status == HTTPStatus.NOT_FOUND and _code(answer) == "unknown_replica":
            raise _Forgotten
        if status == HTTPStatus.NOT_FOUND or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _Unreachable(f"it answered events with status {status}: {_excerpt(answer)}")
        if status >= HTTPStatus.BAD_REQUEST:
            # Sending the same again will not help; the router sees a gap at the next batch, and asks for a snapshot.
            log.error("%s refused events with status %d: %s", self.control, status, _excerpt(answer))

    async def _send(self, method: str, url: str, body: bytes, kind: str) -> tuple[int, bytes]:
        try:
            async with self._session.request(method, url, data=body, headers={"content-type": kind}) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _Unreachable(str(error) or type(error).__name__) from None

    def _url(self, account: Registration) -> str:
        return f"{self.control}/replicas/{quote(account.name, safe='')}"

    def _now_reachable(self) -> None:
        if not self._reachable:
            log.info("registered with the router at %s", self.control)
        self._reachable = True

    def _now_unreachable(self, error: Exception) -> None:
        if self._reachable is not False:
            log.warning("cannot report to the router at %s: %s; trying again", self.control, error)
        self._reachable = False


def _code(answer: bytes) -> str | None:
    try:
        return msgspec.json.decode(answer, type=_Problem).error.code
    except msgspec.DecodeError:
        return None


def _excerpt(answer: bytes) -> str:
    return answer[:200].decode(errors="replace")
