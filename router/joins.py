"""Replicas that come by themselves: what the control port asks of whoever keeps their membership.

Owns that question (`Joins`), the checks that every registration must pass, and the fetching of a replica's own block
list, which repairs any loss of reports. Must hold no state: `local_joins.py` and `shared_joins.py` do.
"""

from __future__ import annotations

from typing import Protocol

import aiohttp

from radix.events import EventBatch, Registration, Snapshot, decode_snapshot
from router.errors import Refusal
from router.fleet import Address, Replica, check_name

LEASE_RANGE_S = (1.0, 300.0)
BLOCK_LIST_TIMEOUT_S = 30.0


class Joins(Protocol):
    """The members that joined, under their leases."""

    async def register(self, said: Registration) -> float:
        """A first registration or a renewal; returns the lease granted, seconds. Raises Refusal."""
        ...

    async def leave(self, name: str, epoch: int) -> None:
        """A clean farewell. Raises Refusal when no such incarnation is here."""
        ...

    async def report(self, batch: EventBatch) -> None:
        """A batch of block events. Raises Refusal when its replica must register (again) first."""
        ...

    def resync(self, replica: Replica) -> None:
        """Have the replica's block list fetched anew, soon: what is believed of it proved wrong."""
        ...

    def expire(self) -> None:
        """Let go of the members whose lease ran out. To be called now and then."""
        ...

    async def close(self) -> None: ...


def granted_lease(said: Registration) -> float:
    """Seconds."""
    return min(max(said.lease_s, LEASE_RANGE_S[0]), LEASE_RANGE_S[1])


def check_registration(said: Registration) -> None:
    """Raises Refusal when it cannot be used."""
    try:
        check_name(said.name)
        Address(said.url)
    except ValueError as error:
        raise Refusal(422, f"{error}.") from None
    if said.block_size < 1:
        raise Refusal(422, "A replica's block size is at least one token.", param="block_size")


async def fetch_block_list(http: aiohttp.ClientSession, url: str) -> Snapshot:
    """What the replica at `url` holds now, as it says. Raises aiohttp.ClientError, OSError, TimeoutError, and
    msgspec.DecodeError when the answer is no block list.
    """
    timeout = aiohttp.ClientTimeout(total=BLOCK_LIST_TIMEOUT_S)
    async with http.get(url.rstrip("/") + "/radixgate/blocks", timeout=timeout) as response:
        response.raise_for_status()
        return decode_snapshot(await response.read())
