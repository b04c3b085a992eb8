"""Stands: what has to be running so that there is a target to ask, and what events of a run can act upon.

Owns the life of a target's processes. Must never know what is asked of it: every plan meets the same stand.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

from loadgen.fleet import (
    ONE_ROUTER,
    START_S,
    Fleet,
    FleetParameters,
    Routers,
    add_replica,
    local_fleet,
    start_replicas,
)
from loadgen.processes import Child, Children, free_ports
from loadgen.runs.command import filled_in
from loadgen.runs.probe import described_fleet, routes, served_model
from loadgen.runs.target import Target

MODEL = "simulated"
# Somebody else's router may take its time until it believes in its replicas.
COMMAND_START_S = 60.0


class Stand:
    """A target that is up; its processes by name, where they are ours; its replicas' URLs by name, where known.

    One of the context managers below makes it and ends it.
    """

    def __init__(
        self, target: Target, replicas: Mapping[str, str], children: Children | None = None, fleet: Fleet | None = None
    ) -> None:
        self.target = target
        self.replicas = replicas
        self._children = children
        self._fleet = fleet

    @property
    def can_add(self) -> bool:
        return self._fleet is not None

    @property
    def own_replicas(self) -> Mapping[str, str]:
        """URLs, by name, of those that were started here: nobody else asks them."""
        return self.replicas if self._children is not None else {}

    def process(self, name: str) -> Child | None:
        return self._children.named(name) if self._children is not None else None

    async def add(self) -> str:
        """One more replica, once it is up: its name. Raises ChildFailed. Only where `can_add`."""
        assert self._fleet is not None
        return await add_replica(self._fleet)

    async def watch(self) -> None:
        """Raises ChildFailed soon after a process has ended that no event ended. Else returns only when there is
        nothing to watch.
        """
        if self._children is not None:
            await self._children.watch()


@asynccontextmanager
async def url_stand(
    url: str | Sequence[str],
    *,
    name: str = "",
    model: str = "",
    control: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Stand]:
    """A server that runs already, or several in front of the same fleet. Its model is asked for unless given.

    Raises StandFailed when it does not answer, or serves several models and none was chosen.
    """
    urls = tuple(map(_origin, [url] if isinstance(url, str) else url))
    fleet = await described_fleet(control.rstrip("/")) if control else None
    target = Target(
        name=name or urls[0],
        urls=urls,
        model=model or await served_model(urls[0], headers or {}),
        control=control.rstrip("/") if control else None,
        headers=dict(headers or {}),
        replicas=len(fleet.replicas) if fleet else None,
        capacity_tokens=fleet.capacity_tokens if fleet else None,
        description="a server that was running already",
    )
    yield Stand(target, {replica.name: replica.url for replica in fleet.replicas} if fleet else {})


@asynccontextmanager
async def policy_stand(
    policy: str,
    parameters: FleetParameters,
    seed: int | None = None,
    *,
    name: str = "",
    routers: Routers = ONE_ROUTER,
) -> AsyncIterator[Stand]:
    """A router of ours under `policy`, whose random choices have the seed, and simulated replicas with empty caches.

    Raises ChildFailed when a process dies or starts too slowly.
    """
    async with local_fleet(policy, parameters, routers, seed) as fleet:
        with _resumed(fleet.children, fleet.replicas):
            target = Target(
                name=name or policy,
                urls=fleet.urls,
                model=fleet.model,
                control=fleet.control,
                replicas=parameters.replicas,
                capacity_tokens=parameters.kv_tokens,
                description=f"radixgate serve --policy {policy} before {fleet_words(parameters)}",
            )
            yield Stand(target, fleet.replicas, fleet.children, fleet)


@asynccontextmanager
async def command_stand(name: str, command: str, parameters: FleetParameters) -> AsyncIterator[Stand]:
    """Somebody else's router: simulated replicas that join nobody, and `command` in front of them.

    Its placeholders are those of `command.filled_in`. It is ready when GET /v1/models or /health answers 200 and a
    first short request comes through. Raises ChildFailed when a process dies or starts too slowly, BadCommand when the
    command cannot be run.
    """
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    filled_in(command, port, ())  # what is wrong with it is said before anything starts
    with Children() as children:
        replicas = start_replicas(children, parameters, ())
        for replica, address in replicas.items():
            child = children.named(replica)
            assert child is not None
            await children.until_ready(child, f"{address}/health", START_S)
        router = children.start_program("router", filled_in(command, port, list(replicas.values())))
        await routes(children, router, url, MODEL, COMMAND_START_S)
        with _resumed(children, replicas):
            target = Target(
                name=name,
                urls=(url,),
                model=MODEL,
                replicas=parameters.replicas,
                capacity_tokens=parameters.kv_tokens,
                description=f"{command} before {fleet_words(parameters)}",
            )
            yield Stand(target, replicas, children)


def fleet_words(parameters: FleetParameters) -> str:
    unequal = "".join(f", {name} {factor:g} times as slow" for name, factor in parameters.slow.items())
    return (
        f"{parameters.replicas} simulated replicas of {parameters.kv_tokens:,} KV tokens, prefill "
        f"{parameters.prefill_rate:,.0f} tokens/s, all x{parameters.speedup:g}{unequal}"
    )


@contextmanager
def _resumed(children: Children, replicas: Mapping[str, str]) -> Iterator[None]:
    """At its end, processes that an event stopped can hear that they are to end."""
    try:
        yield
    finally:
        for name in replicas:
            if (child := children.named(name)) is not None:
                child.signal_group(signal.SIGCONT)


def _origin(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")
