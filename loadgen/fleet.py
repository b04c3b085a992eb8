"""A whole small fleet on this machine: one router or several under a policy, and simulated replicas that join them.

Owns the command lines of our own processes and the order of their start. Must never import the router or a replica:
they run as what a user would start.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Literal

import msgspec

from loadgen.processes import Child, ChildFailed, Children, free_ports
from loadgen.redis_process import RedisServer

START_S = 20.0
# -P: whatever the current directory holds, it is not what `router` means.
RADIXGATE = ("-P", "-m", "router.main")

# How routers know what is cached where: each in its own memory from what replicas report to it, from one tree in Redis,
# or each from nothing but what it routed itself.
Truth = Literal["embedded", "redis", "private"]


class FleetParameters(msgspec.Struct, frozen=True):
    """`kv_tokens` is the KV capacity of each replica in tokens; `speedup` scales the simulated hardware's rates.

    `prefill_rate` is in prompt tokens a second before that; `max_model_len` in tokens, 0 for the replica's default.
    `slow` makes a fleet of unequal hardware: by a replica's name (r0, r1, ...), how many times as long it takes.
    """

    replicas: int = 4
    kv_tokens: int = 32_768
    speedup: float = 1.0
    prefill_rate: float = 8000.0
    max_model_len: int = 0
    slow: dict[str, float] = {}


class Routers(msgspec.Struct, frozen=True):
    """How many there are, and how they know."""

    count: int = 1
    truth: Truth = "embedded"


ONE_ROUTER = Routers()


class Fleet(msgspec.Struct, frozen=True):
    """A running fleet: each of `urls` takes requests, `controls` (parallel to them) answer about the fleet, `model` is
    what the replicas serve. `replicas` has the URL of each by its name; the flags `homes` make another one join."""

    urls: tuple[str, ...]
    controls: tuple[str, ...]
    model: str
    children: Children
    parameters: FleetParameters
    homes: tuple[str, ...]
    replicas: dict[str, str]

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def control(self) -> str:
        return self.controls[0]


class _Readiness(msgspec.Struct):
    replicas_up: int = 0


class _Listed(msgspec.Struct):
    name: str
    state: str


class _Listing(msgspec.Struct):
    replicas: list[_Listed] = []


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


@asynccontextmanager
async def local_fleet(
    policy: str, parameters: FleetParameters, routers: Routers = ONE_ROUTER, seed: int | None = None
) -> AsyncIterator[Fleet]:
    """Up and ready inside the context, gone after it. `seed` is that of the routers' random choices.

    Raises ChildFailed when a process dies or starts too slowly, NoRedisServer where one is needed and there is none.
    """
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer()) if routers.truth == "redis" else None
        redis = server.url if server is not None else None
        children = stack.enter_context(Children())
        flags = ["--policy", policy, *truth_flags(routers.truth, redis)]
        started, urls, controls = await start_routers(children, routers.count, flags, seed)
        homes = ["--report", redis] if redis else [part for control in controls for part in ("--join", control)]
        replicas = start_replicas(children, parameters, homes)
        await until_up(children, started, controls, parameters.replicas)
        models = [await _served(children, router, url) for router, url in zip(started, urls, strict=True)]
        yield Fleet(urls, controls, models[0][0], children, parameters, tuple(homes), replicas)
        if server is not None:
            _check(server)


def start_replicas(children: Children, parameters: FleetParameters, homes: Sequence[str]) -> dict[str, str]:
    """As many as the parameters say, named r0, r1, ..., perhaps not ready yet: their URLs by name."""
    ports = free_ports(parameters.replicas)
    for index, port in enumerate(ports):
        children.start(f"r{index}", _replica(f"r{index}", port, homes, parameters))
    return {f"r{index}": f"http://127.0.0.1:{port}" for index, port in enumerate(ports)}


async def add_replica(fleet: Fleet) -> str:
    """One more, once every router has it up: its name. Raises ChildFailed."""
    name = f"r{len(fleet.replicas)}"
    (port,) = free_ports(1)
    fleet.replicas[name] = f"http://127.0.0.1:{port}"
    child = fleet.children.start(name, _replica(name, port, fleet.homes, fleet.parameters))
    for control in fleet.controls:
        await fleet.children.until_ready(child, f"{control}/fleet", START_S, lambda body: name in _names_up(body))
    return name


async def start_routers(
    children: Children, count: int, flags: list[str], seed: int | None = None
) -> tuple[list[Child], tuple[str, ...], tuple[str, ...]]:
    """`count` routers with `flags`, alive: the processes, where they take requests, and their control addresses."""
    ports = free_ports(2 * count)
    listens, controls = [[f"127.0.0.1:{port}" for port in half] for half in (ports[:count], ports[count:])]
    routers = []
    for index, (listen, control) in enumerate(zip(listens, controls, strict=True)):
        own = ["--seed", str(seed + index)] if seed is not None else []
        name = "router" if count == 1 else f"router{index}"
        routers.append(
            children.start(name, [*RADIXGATE, "serve", "--listen", listen, "--control", control, *flags, *own])
        )
    for router, control in zip(routers, controls, strict=True):
        await children.until_ready(router, f"http://{control}/healthz/live", START_S)
    return routers, tuple(f"http://{listen}" for listen in listens), tuple(f"http://{control}" for control in controls)


async def until_up(children: Children, routers: list[Child], controls: tuple[str, ...], replicas: int) -> None:
    """Until every router has `replicas` that are up."""
    for router, control in zip(routers, controls, strict=True):
        await children.until_ready(router, f"{control}/healthz/ready", START_S, lambda body: _up(body) == replicas)


def _check(server: RedisServer) -> None:
    """Routers do without a Redis that is gone, but then share nothing: raises ChildFailed."""
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=START_S).close()
    except OSError as error:
        raise ChildFailed(f"redis-server is gone ({error}). The end of its log:\n{server.log_tail()}") from None


async def _served(children: Children, router: Child, url: str) -> list[str]:
    return _model_ids(
        await children.until_ready(router, f"{url}/v1/models", START_S, lambda body: bool(_model_ids(body)))
    )


def truth_flags(truth: Truth, redis: str | None) -> list[str]:
    """For `serve`; `redis` is a URL where the truth is there."""
    if truth == "redis" and redis is not None:
        return ["--redis", redis]
    return ["--private"] if truth == "private" else []


def _replica(name: str, port: int, homes: Sequence[str], parameters: FleetParameters) -> list[str]:
    command = [*RADIXGATE, "replica", "--model", "simulated", "--listen", f"127.0.0.1:{port}", "--name", name]
    speedup = parameters.speedup / parameters.slow.get(name, 1.0)
    sizes = ["--kv-tokens", str(parameters.kv_tokens), "--speedup", f"{speedup:g}"]
    if parameters.max_model_len:
        sizes += ["--max-model-len", str(parameters.max_model_len)]
    return [*command, *sizes, "--prefill-rate", f"{parameters.prefill_rate:g}", *homes]


def _up(body: bytes) -> int:
    try:
        return msgspec.json.decode(body, type=_Readiness).replicas_up
    except msgspec.DecodeError:
        return 0


def _names_up(body: bytes) -> set[str]:
    try:
        listed = msgspec.json.decode(body, type=_Listing).replicas
    except msgspec.DecodeError:
        return set()
    return {replica.name for replica in listed if replica.state == "up"}


def _model_ids(body: bytes) -> list[str]:
    try:
        return [model.id for model in msgspec.json.decode(body, type=_Models).data]
    except msgspec.DecodeError:
        return []
