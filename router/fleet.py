"""The fleet: every replica the router knows, where it came from, whether it is up, and which models it serves.

Owns that list and the table of models made from it. Whoever learns something about a replica (the health prober, the
data plane, a lease) says so here; whoever must follow (the residency) listens here. Must never do I/O.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from radix.events import Registration
from router.models import ModelTable
from router.upstream import ConnectionPool
from scoring.ledger import ReplicaLoad


class State(enum.Enum):
    """UNKNOWN until the first probe; routing uses only UP."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


_PRINTABLE = re.compile(r"[\x21-\x7e]+")
MAX_NAME = 200


def check_name(name: str) -> None:
    """Replica names stand in headers and in metrics. Raises ValueError."""
    if not _PRINTABLE.fullmatch(name) or len(name) > MAX_NAME:
        raise ValueError(f"{name!r} is not a replica name; use up to {MAX_NAME} printable ASCII characters, no blanks")


class Address:
    """Where a replica's server is. Raises ValueError for anything but an http(s) URL with a host."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a replica URL; write http://HOST:PORT")
        if not _PRINTABLE.fullmatch(url):
            raise ValueError(f"{url!r}: a replica URL is plain ASCII without blanks")
        if parts.query or parts.fragment or parts.username:
            raise ValueError(f"{url!r}: a replica URL has no user, query or fragment; write http://HOST:PORT")
        self.tls = parts.scheme == "https"
        self.host = parts.hostname
        self.port = parts.port or (443 if self.tls else 80)  # .port raises ValueError when it is not a port
        self.authority = parts.netloc
        self.base_path = parts.path.rstrip("/")
        self.url = f"{parts.scheme}://{parts.netloc}{self.base_path}"


class Replica:
    """One replica. `models` is None while unknown: such a replica may serve any model."""

    def __init__(self, name: str, address: Address, connections: ConnectionPool) -> None:
        self.name = name
        self.address = address
        self.connections = connections
        self.load = ReplicaLoad(name)
        self.state = State.UNKNOWN
        self.reason = "not probed yet"
        self.declared: tuple[str, ...] = ()  # model names and prefixes from the configuration
        self.models: tuple[str, ...] | None = None
        self.cards: tuple[dict[str, Any], ...] = ()  # its /v1/models entries
        self.registration: Registration | None = None
        self.joined = False  # it came by itself, under a lease
        self.lease_until = 0.0
        # Bytes of every request's head, made once.
        self.host_line = f" HTTP/1.1\r\nhost: {address.authority}\r\n".encode()
        self.base_path = address.base_path.encode()
        self.name_line = f"x-radixgate-replica: {name}\r\n".encode("ascii", "replace")

    @property
    def serves(self) -> tuple[str, ...] | None:
        return self.declared or self.models

    def __repr__(self) -> str:
        return f"<Replica {self.name} {self.state.value}>"


class Fleet:
    """All replicas by name, in the order in which they came."""

    def __init__(self) -> None:
        self._replicas: dict[str, Replica] = {}
        self._listeners: list[Callable[[Replica], None]] = []
        self._table: ModelTable | None = None

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas.values())

    def __len__(self) -> int:
        return len(self._replicas)

    def get(self, name: str) -> Replica | None:
        return self._replicas.get(name)

    def subscribe(self, listener: Callable[[Replica], None]) -> None:
        """`listener` hears of every replica that was added, removed, or changed: its state, mostly."""
        self._listeners.append(listener)

    def add(self, replica: Replica) -> None:
        """Raises ValueError when the name is taken, or cannot stand in a header."""
        check_name(replica.name)
        if replica.name in self._replicas:
            raise ValueError(f"two replicas are named {replica.name!r}; give each its own name")
        self._replicas[replica.name] = replica
        self._changed(replica)

    def remove(self, replica: Replica, reason: str) -> None:
        if self._replicas.get(replica.name) is replica:
            del self._replicas[replica.name]
            replica.state = State.DOWN
            replica.reason = reason
            replica.connections.retire()
            self._changed(replica)

    def mark_up(self, replica: Replica) -> None:
        if replica.state is not State.UP and self._replicas.get(replica.name) is replica:
            replica.state = State.UP
            replica.reason = ""
            self._changed(replica)

    def mark_down(self, replica: Replica, reason: str) -> None:
        if replica.state is not State.DOWN and self._replicas.get(replica.name) is replica:
            replica.state = State.DOWN
            replica.reason = reason
            replica.connections.close()
            self._changed(replica)

    def announce(self, replica: Replica) -> None:
        """What the replica says of itself, or who hears its reports, has changed: listeners look at it again."""
        if self._replicas.get(replica.name) is replica:
            self._changed(replica)

    def learn_models(self, replica: Replica, models: Iterable[str] | None, cards: Iterable[dict[str, Any]]) -> None:
        """What the replica says it serves."""
        names = None if models is None else tuple(models)
        replica.cards = tuple(cards)
        if names != replica.models:
            replica.models = names
            self.rebuild()

    def rebuild(self) -> None:
        """The table of models is made anew when it is next needed, however many changes come before that."""
        self._table = None

    @property
    def table(self) -> ModelTable:
        """Which replicas serve which model."""
        if self._table is None:
            self._table = ModelTable(self._replicas.values())
        return self._table

    def up(self) -> list[Replica]:
        return [replica for replica in self if replica.state is State.UP]

    def close(self) -> None:
        """Close every connection that is not in use."""
        for replica in self:
            replica.connections.close()

    def _changed(self, replica: Replica) -> None:
        self.rebuild()
        for listener in self._listeners:
            listener(replica)
