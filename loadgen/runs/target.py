"""What a run asks: addresses, and the facts that a report repeats about them.

Owns the description only. Must never hold a connection or a process: `stands` do.
"""

from __future__ import annotations

import msgspec


class Target(msgspec.Struct, frozen=True):
    """A server, or several that serve the same fleet, with OpenAI's API.

    Each of `urls` is an origin without /v1; requests go to them in turn. `control` is the origin of a RadixGate
    router's control port, where receipts are read. `headers` go with every request, and may hold secrets: no report
    repeats them. `replicas` is the size of the fleet behind it and `capacity_tokens` the KV capacity of one replica,
    where they are known.
    """

    name: str
    urls: tuple[str, ...]
    model: str
    control: str | None = None
    headers: dict[str, str] = {}
    replicas: int | None = None
    capacity_tokens: int | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("a target needs at least one URL")
