"""A whole small fleet on this machine: one router under a policy and simulated replicas that join it.

Owns the command lines of our own processes and the order of their start. Must never import the router or a replica:
they run as what a user would start.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from loadgen.processes import Children, free_ports

START_S = 20.0
# -P: whatever the current directory holds, it is not what `router` means.
RADIXGATE = ("-P", "-m", "router.main")


class FleetParameters(msgspec.Struct, frozen=True):
    """`kv_tokens` is the KV capacity of each replica in tokens; `speedup` scales the simulated hardware's rates."""

    replicas: int = 4
    kv_tokens: int = 32_768
    speedup: float = 1.0


class Fleet(msgspec.Struct, frozen=True):
    """A running fleet: `url` takes requests, `control` answers about the fleet, `model` is what the replicas serve."""

    url: str
    control: str
    model: str
    children: Children


class _Readiness(msgspec.Struct):
    replicas_up: int = 0


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


@asynccontextmanager
async def local_fleet(policy: str, parameters: FleetParameters) -> AsyncIterator[Fleet]:
    """Up and ready inside the context, gone after it. Raises ChildFailed when a process dies or starts too slowly."""
    data_port, control_port, *replica_ports = free_ports(2 + parameters.replicas)
    url, control = f"http://127.0.0.1:{data_port}", f"http://127.0.0.1:{control_port}"
    with Children() as children:
        router = children.start("router", _router(policy, data_port, control_port))
        await children.until_ready(router, f"{control}/healthz/live", START_S)
        for index, port in enumerate(replica_ports):
            children.start(f"r{index}", _replica(f"r{index}", port, control, parameters))
        everyone = parameters.replicas
        await children.until_ready(router, f"{control}/healthz/ready", START_S, lambda body: _up(body) == everyone)
        models = await children.until_ready(router, f"{url}/v1/models", START_S, lambda body: bool(_model_ids(body)))
        yield Fleet(url, control, _model_ids(models)[0], children)


def _router(policy: str, data_port: int, control_port: int) -> list[str]:
    listen, control = f"127.0.0.1:{data_port}", f"127.0.0.1:{control_port}"
    return [*RADIXGATE, "serve", "--listen", listen, "--control", control, "--policy", policy]


def _replica(name: str, port: int, control: str, parameters: FleetParameters) -> list[str]:
    command = [*RADIXGATE, "replica", "--model", "simulated", "--listen", f"127.0.0.1:{port}", "--name", name]
    sizes = ["--kv-tokens", str(parameters.kv_tokens), "--speedup", f"{parameters.speedup:g}"]
    return [*command, *sizes, "--join", control]


def _up(body: bytes) -> int:
    try:
        return msgspec.json.decode(body, type=_Readiness).replicas_up
    except msgspec.DecodeError:
        return 0


def _model_ids(body: bytes) -> list[str]:
    try:
        return [model.id for model in msgspec.json.decode(body, type=_Models).data]
    except msgspec.DecodeError:
        return []
