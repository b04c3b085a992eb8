"""The way to a Redis: opens what a URL names, runs Lua scripts there, and tells "not now" from "never".

Owns the client's settings, and the list of errors that mean "away, slow or failing over". Must never know what is kept
in Redis, and never tries anything again by itself: its callers do, since they know what is still worth sending.

Only routers and replicas that were given a Redis import this: it loads redis-py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from redis import exceptions
from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import (
    Connection,
    ConnectionPool,
    DefaultParser,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError
from redis.backoff import NoBackoff

from radix.redis_url import RedisUrl, RedisUrlError, Shape, parse_redis_url

__all__ = [
    "UNAVAILABLE",
    "Client",
    "RedisLink",
    "RedisUrlError",
    "Script",
    "explain",
    "open_link",
    "run_script",
]

MAX_CONNECTIONS = 4096  # a router forwards each of its replicas' reports over one of its own

Client: TypeAlias = Redis | RedisCluster  # replies are bytes


class Hindered(exceptions.ResponseError):
    """Redis is there and says that it cannot serve for now: a long script runs, or it may not or cannot persist."""


_KINDS: Final[dict[str, type[exceptions.ResponseError]]] = {
    "READONLY": exceptions.ReadOnlyError,
    "OOM": exceptions.OutOfMemoryError,
    "BUSY": Hindered,
    "MISCONF": Hindered,
    "NOREPLICAS": Hindered,
}
_KIND = re.compile(rf"(?:^|-)({'|'.join(_KINDS)}) ")


def _parse_error(reply: str) -> Exception:
    """The error of a reply, also of codes that redis-py does not know, and of what failed inside a script: before
    version 7, Redis wraps that in an error of its own."""
    error: Exception = DefaultParser.parse_error(reply)  # type: ignore[no-untyped-call]  # not typed there
    found = _KIND.search(reply) if type(error) is exceptions.ResponseError else None
    return error if found is None else _KINDS[found[1]](reply)


# DefaultParser is hiredis' or Python's, found out when redis-py is loaded.
_Parser = type("_Parser", (DefaultParser,), {"parse_error": staticmethod(_parse_error)})

# What is worth another try, later. A wrong password is among these, because redis-py takes it for a failed connection;
# so is a URL of a cluster that leads to none. `explain` tells a person.
UNAVAILABLE: Final[tuple[type[Exception], ...]] = (
    exceptions.ConnectionError,  # with BusyLoadingError, MasterNotFoundError and AuthenticationError
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterError,  # with ClusterDownError and MasterDownError
    exceptions.RedisClusterException,  # no node answers, or slots are not covered
    exceptions.TryAgainError,
    exceptions.AskError,  # with MovedError: the cluster is moving slots faster than the client follows
    exceptions.InvalidResponse,
    Hindered,
    OSError,  # with the built-in TimeoutError
)


@dataclass(frozen=True)
class RedisLink:
    """An open way to one namespace of one Redis. `shown` is its URL without passwords."""

    client: Client = field(repr=False)
    namespace: str
    shown: str
    _sentinels: tuple[Redis, ...] = field(default=(), repr=False)

    async def close(self) -> None:
        """Closes every connection. Safe to call twice; no reply is awaited."""
        await self.client.aclose()
        if isinstance(self.client, RedisCluster):
            # After a failed command the cluster client believes to be closed, and leaves its connections open.
            await self.client.nodes_manager.aclose()
            await self.client.nodes_manager.aclose("startup_nodes")
        for sentinel in self._sentinels:
            await sentinel.aclose()


def open_link(url: str, *, timeout_s: float = 2.0) -> RedisLink:
    """Connects at the first command. Raises RedisUrlError.

    Every wait, for a connection as for a reply, ends after `timeout_s`; a command that blocks in Redis must do so for
    less.
    """
    said = parse_redis_url(url)
    if said.shape is Shape.CLUSTER:
        return RedisLink(_cluster(said, timeout_s), said.namespace, said.shown)
    if said.shape is Shape.SENTINEL:
        client, sentinels = _sentinel(said, timeout_s)
        return RedisLink(client, said.namespace, said.shown, sentinels)
    return RedisLink(_single(said, timeout_s), said.namespace, said.shown)


def _single(said: RedisUrl, timeout_s: float) -> Redis:
    settings = {"db": said.db, "parser_class": _Parser, **_common(said, timeout_s)}
    if said.shape is Shape.UNIX:
        del settings["socket_keepalive"]
        return Redis.from_pool(ConnectionPool(UnixDomainSocketConnection, path=said.socket_path, **settings))
    (host, port), tls = said.hosts[0], said.tls
    kind = Connection if tls is None else SSLConnection
    return Redis.from_pool(ConnectionPool(kind, host=host, port=port, **settings, **(tls or {})))


def _sentinel(said: RedisUrl, timeout_s: float) -> tuple[Redis, tuple[Redis, ...]]:
    tls = {"ssl": True, **said.tls} if said.tls is not None else {}
    # They are asked one after the other, and all of them within the time.
    asking = {
        **_waits(timeout_s / len(said.hosts)),
        **tls,
        "username": said.sentinel_username,
        "password": said.sentinel_password,
    }
    manager = Sentinel(list(said.hosts), sentinel_kwargs=asking)  # type: ignore[no-untyped-call]  # not typed there
    client = manager.master_for(said.service, db=said.db, parser_class=_Parser, **_common(said, timeout_s), **tls)
    return client, tuple(manager.sentinels)


def _cluster(said: RedisUrl, timeout_s: float) -> RedisCluster:
    tls = {"ssl": True, **said.tls} if said.tls is not None else {}
    nodes = [ClusterNode(host, port) for host, port in said.hosts]
    client = RedisCluster(startup_nodes=nodes, **_common(said, timeout_s), **tls)
    # Its constructor takes no parser; this is how it hands settings of its own to all nodes.
    client.nodes_manager.connection_kwargs["parser_class"] = _Parser
    for node in client.nodes_manager.startup_nodes.values():
        node.connection_kwargs["parser_class"] = _Parser
    return client


def _common(said: RedisUrl, timeout_s: float) -> dict[str, Any]:
    return {
        **_waits(timeout_s),
        "username": said.username,
        "password": said.password,
        "client_name": said.client_name,
        "max_connections": MAX_CONNECTIONS,
    }


def _waits(timeout_s: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        "protocol": 2,  # the same shapes of replies from every version
    }


class Script:
    """A Lua script; `sha` names it in Redis."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


async def run_script(
    client: Client,
    script: Script,
    keys: Sequence[str | bytes],
    args: Sequence[str | bytes | bytearray | memoryview | int | float] = (),
) -> Any:
    """Runs `script` where `keys` live: one hash tag, at least one key. Sends its text only when Redis does not have it.

    Raises redis.exceptions.RedisError, also of what fails inside the script, and whatever is in UNAVAILABLE.
    """
    try:
        return await client.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
    except exceptions.NoScriptError:
        return await client.execute_command("EVAL", script.text, len(keys), *keys, *args)


def explain(error: BaseException) -> str:
    """What an error of this link means, for a log or a terminal, with what to do where a person must do it."""
    causes = list(_causes(error))
    text = "; ".join(dict.fromkeys(_text(each) for each in causes))
    if any(isinstance(each, exceptions.AuthenticationError) for each in causes):
        return f"Redis refuses the user or the password of its URL: {text}"
    if any(isinstance(each, exceptions.NoPermissionError) for each in causes):
        return f"Redis denies this to the user of its URL, who needs more rights there: {text}"
    return text


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        # The cluster client hides what its first node said behind a guess of its own.
        hidden = error.__context__ if isinstance(error, exceptions.RedisClusterException) else None
        error = error.__cause__ or hidden


def _text(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    if not isinstance(error, MasterNotFoundError):
        return text
    # It goes on with each sentinel's settings and, at their end, the kind of error that it met.
    met = dict.fromkeys(re.findall(r" - \w+:(\w+)", text))
    hint = " (sentinel_username and sentinel_password are for them)" if "AuthenticationError" in met else ""
    return ", ".join([f"the sentinels name no master: {text.partition(' : ')[0]}", *met]) + hint
