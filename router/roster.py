"""The members of the fleet that joined: one for each name, of the newest incarnation heard of.

Owns their coming and going, whoever brings the news. Must never trust an older incarnation over a newer one, nor touch
a replica of the configuration.
"""

from __future__ import annotations

from collections.abc import Callable

from radix.events import Registration
from router.errors import Refusal
from router.fleet import Address, Fleet, Replica


class Roster:
    """Admits replicas to the fleet and dismisses them."""

    def __init__(self, fleet: Fleet, make_replica: Callable[[str, Address], Replica]) -> None:
        self._fleet = fleet
        self._make_replica = make_replica

    def check(self, said: Registration) -> None:
        """Raises Refusal when the name is taken, or a newer incarnation is here."""
        replica = self._fleet.get(said.name)
        if replica is None:
            return
        if not replica.joined:
            raise Refusal(409, f"The name {said.name!r} belongs to a replica of the configuration.", code="name_taken")
        if replica.registration is not None and said.epoch < replica.registration.epoch:
            raise Refusal(409, f"A newer incarnation of {said.name!r} has joined.", code="superseded")

    def admit(self, said: Registration) -> Replica:
        """Of a new incarnation: whatever was known of the one before is void. Of the one that is here: it is as it says
        now, and keeps its load. Raises Refusal as `check` does.
        """
        self.check(said)
        before = self._fleet.get(said.name)
        if before is not None and before.registration is not None and before.registration.epoch == said.epoch:
            before.registration = said
            return before
        if before is not None:
            self._fleet.remove(before, "a new incarnation joined")
        replica = self._make_replica(said.name, Address(said.url))
        replica.joined = True
        replica.registration = said
        replica.models = said.models
        replica.load.capacity_tokens = said.capacity_blocks * said.block_size
        self._fleet.add(replica)
        return replica

    def member(self, name: str) -> Replica | None:
        """The replica of that name, if it joined."""
        replica = self._fleet.get(name)
        return replica if replica is not None and replica.joined else None

    def dismiss(self, replica: Replica, reason: str) -> None:
        self._fleet.remove(replica, reason)
