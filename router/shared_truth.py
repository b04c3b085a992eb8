"""Reported truth that many routers share: the mirror of the tree in Redis.

Owns only the question which of the mirror's members a replica of the fleet is.
"""

from __future__ import annotations

from radix.index import PrefixIndex
from radix.members import Member
from radix.mirror import Mirror
from router.fleet import Replica


class SharedTruth:
    """A replica reports if the very same incarnation lives in the tree."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    @property
    def index(self) -> PrefixIndex:
        return self._mirror.index

    def reports(self, replica: Replica) -> Member | None:
        said = replica.registration
        if said is None or not replica.joined:
            return None
        member = self._mirror.members.get(replica.name)
        return member if member is not None and member.epoch == said.epoch else None

    def whole(self, replica: Replica) -> bool:
        member = self.reports(replica)
        return self._mirror.current and member is not None and member.slot != 0
