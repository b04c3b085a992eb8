"""The one string by which every command is told of a Redis, and what it says.

Owns the URL's forms and its errors. Must never connect, load a Redis client, or let a password into a text.

    redis://[user:password@]host:6379/0?namespace=prod
    rediss://…                                           the same over TLS (&ssl_ca_certs=/path/ca.pem)
    unix://[user:password@]/run/redis.sock?db=0
    redis+sentinel://[user:password@]host:26379,host2:26379/SERVICE[/db]
    redis+cluster://[user:password@]host:6379,host2:6379
    rediss+sentinel://…, rediss+cluster://…              over TLS, the sentinels too

The user and the password are those of the servers that hold data; sentinels get `sentinel_username` and
`sentinel_password` from the query, and nothing without them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode

REDIS_PORT = 6379
SENTINEL_PORT = 26379
SECRETS = ("password", "sentinel_password")
HELP = (
    "write it as redis://[user:password@]host:6379/0?namespace=NAME, rediss://… for TLS, unix:///path/redis.sock, "
    "redis+sentinel://host:26379,host2:26379/SERVICE or redis+cluster://host:6379,host2:6379"
)

# What is not excluded here is checked part by part. Greedy, so that the login ends at the last '@' before the path.
_URL = re.compile(
    r"(?P<scheme>[a-z+]+)://(?:(?P<login>[^/?#]*)@)?(?P<hosts>[^/?#@]*)(?P<path>/[^?#@]*)?(?:\?(?P<query>[^#@]*))?"
)
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?")
_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,100}")
_SETTING = re.compile(r"[a-z_]{1,30}")
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS_SETTINGS = (*_TLS_FILES, "ssl_cert_reqs", "ssl_check_hostname")


class RedisUrlError(ValueError):
    """A URL that says nothing usable. The message says why and how to write it, and holds no part of a password."""


class Shape(Enum):
    SINGLE = "redis"
    UNIX = "unix"
    SENTINEL = "redis+sentinel"
    CLUSTER = "redis+cluster"


@dataclass(frozen=True)
class RedisUrl:
    """What a URL says. `shown` is the URL without its passwords; `tls` holds redis-py's names, None: no TLS."""

    shape: Shape
    hosts: tuple[tuple[str, int], ...]
    namespace: str
    shown: str
    socket_path: str = ""
    service: str = ""
    db: int = 0
    tls: Mapping[str, Any] | None = None
    client_name: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)


def parse_redis_url(url: str) -> RedisUrl:
    """Raises RedisUrlError."""
    found = _URL.fullmatch(url)
    if found is None:
        raise RedisUrlError(
            f"this is not the URL of a Redis: {HELP}. Outside of [user:password@] an '@' is written %40; "
            "in a user's name or password write '/' as %2F, '?' as %3F, '#' as %23"
        )
    shape, encrypted = _shape(found["scheme"])
    settings = _settings(found["query"] or "", shape, encrypted)
    username, password = _login(found["login"])
    service, db = _path(shape, unquote(found["path"] or ""), settings)
    return RedisUrl(
        shape=shape,
        hosts=_hosts(found["hosts"], shape),
        namespace=_namespace(settings.get("namespace", "default")),
        shown=_shown(found, settings),
        socket_path=unquote(found["path"] or "") if shape is Shape.UNIX else "",
        service=service,
        db=db,
        tls=_tls(settings) if encrypted else None,
        client_name=settings.get("client_name"),
        username=settings.get("username", username),
        password=settings.get("password", password),
        sentinel_username=settings.get("sentinel_username"),
        sentinel_password=settings.get("sentinel_password"),
    )


def _shape(scheme: str) -> tuple[Shape, bool]:
    encrypted = scheme.partition("+")[0] == "rediss"
    try:
        return Shape(scheme.replace("rediss", "redis", 1)), encrypted
    except ValueError:
        raise RedisUrlError(f"{scheme}:// does not lead to a Redis: {HELP}") from None


def _login(login: str | None) -> tuple[str | None, str | None]:
    if login is None:
        return None, None
    user, colon, password = login.partition(":")
    if not colon:
        raise RedisUrlError("before the '@' of a Redis URL stands user:password, or :password, with a colon")
    return unquote(user) or None, unquote(password)


def _hosts(text: str, shape: Shape) -> tuple[tuple[str, int], ...]:
    if shape is Shape.UNIX:
        if text:
            raise RedisUrlError("a Unix socket's URL has three slashes before its path: unix:///run/redis.sock")
        return ()
    hosts = tuple(_host(part, SENTINEL_PORT if shape is Shape.SENTINEL else REDIS_PORT) for part in text.split(","))
    if len(hosts) > 1 and shape is Shape.SINGLE:
        raise RedisUrlError(
            "redis:// takes one host. Several are several sentinels (redis+sentinel://a:26379,b:26379/SERVICE) "
            "or nodes of a cluster (redis+cluster://a:6379,b:6379)"
        )
    return hosts


def _host(text: str, default_port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int((found and found["port"]) or default_port)
    if found is None or not 0 < port < 65536:
        # The text is not shown: when a password holds a '/', this is a part of it.
        raise RedisUrlError(
            "a Redis URL has a host, or host:port with a port from 1 to 65535 ([…] around IPv6), after // and any "
            "user:password@, in which '/' is written %2F, '?' %3F and '#' %23"
        )
    return found["v6"] or found["name"], port


def _path(shape: Shape, path: str, settings: Mapping[str, str]) -> tuple[str, int]:
    """The sentinels' service and the number of the database."""
    if shape is Shape.UNIX:
        if not path.strip("/"):
            raise RedisUrlError("a Unix socket's URL needs its path: unix:///run/redis.sock")
        return "", _db(settings.get("db", ""))
    service, path = path.strip("/"), ""
    if shape is Shape.SENTINEL:
        service, _, path = service.partition("/")
        if not service:
            raise RedisUrlError("sentinels must be asked for a service: redis+sentinel://host:26379/SERVICE")
    else:
        service, path = "", service
    db = _db(path)
    if db and shape is Shape.CLUSTER:
        raise RedisUrlError("a Redis Cluster has database 0 only: leave the number out")
    return service, db


def _db(text: str) -> int:
    if not re.fullmatch(r"[0-9]{0,9}", text):
        raise RedisUrlError("the database of a Redis URL is a number: redis://host:6379/0")
    return int(text or 0)


def _settings(query: str, shape: Shape, encrypted: bool) -> dict[str, str]:
    known = {"namespace", "client_name", "username", "password"}
    known |= set(_TLS_SETTINGS) if encrypted else set()
    known |= {"db"} if shape is Shape.UNIX else set()
    known |= {"sentinel_username", "sentinel_password"} if shape is Shape.SENTINEL else set()
    settings: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if not equals or not _SETTING.fullmatch(name):
            raise RedisUrlError("after the '?' of a Redis URL stands name=value&name=value")
        if name in settings:
            raise RedisUrlError(f"the Redis URL says {name} twice")
        if name in _TLS_SETTINGS and not encrypted and shape is not Shape.UNIX:
            raise RedisUrlError(f"{name} needs TLS: begin the URL with redis{'s'}{shape.value[5:]}://")
        if name not in known:
            # After a password, it may be the part of it that follows an '&'.
            unknown = "of that name" if any(secret in settings for secret in SECRETS) else name
            raise RedisUrlError(f"a Redis URL of this kind has no setting {unknown}; it has {', '.join(sorted(known))}")
        settings[name] = unquote(value)
    return settings


def _namespace(name: str) -> str:
    if not _NAMESPACE.fullmatch(name):
        raise RedisUrlError("a namespace is 1 to 100 letters, digits, '.', '_' or '-': redis://host?namespace=prod")
    return name


def _tls(settings: Mapping[str, str]) -> dict[str, Any]:
    tls: dict[str, Any] = {name: value for name, value in settings.items() if name in _TLS_SETTINGS}
    for name in _TLS_FILES:
        if name in tls and not Path(tls[name]).is_file():
            raise RedisUrlError(f"{name} of the Redis URL names a file that is not there: {tls[name]}")
    if tls.setdefault("ssl_cert_reqs", "required") not in ("required", "optional", "none"):
        raise RedisUrlError("ssl_cert_reqs of a Redis URL is required, optional or none")
    answers = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if tls.setdefault("ssl_check_hostname", "true").lower() not in answers:
        raise RedisUrlError("ssl_check_hostname of a Redis URL is true or false")
    tls["ssl_check_hostname"] = answers[tls["ssl_check_hostname"].lower()]
    return tls


def _shown(found: re.Match[str], settings: Mapping[str, str]) -> str:
    login = "" if found["login"] is None else f"{found['login'].partition(':')[0]}:***@"
    shown = {name: "***" if name in SECRETS else value for name, value in settings.items()}
    query = "?" + urlencode(shown, safe="*/:") if shown else ""
    return f"{found['scheme']}://{login}{found['hosts']}{found['path'] or ''}{query}"
