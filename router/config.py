"""What `radixgate serve` is told: one typed structure from a YAML file and from flags, which win over the file.

Owns reading and checking. Every error names the flag or the field to change.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import yaml

from scoring.policies import POLICIES


class ConfigError(ValueError):
    """The configuration cannot be used; the message says what to change."""


class ReplicaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One replica that is always there. `models` are names, or prefixes ending in `/` or `:`; empty: ask it."""

    url: str
    name: str = ""
    models: tuple[str, ...] = ()


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything `serve` can be told. Sizes in bytes, times in seconds."""

    listen: str = "127.0.0.1:8080"
    control: str = "127.0.0.1:9400"
    policy: str = "kv"
    replicas: tuple[ReplicaConfig, ...] = ()
    tokenizers: dict[str, str] = {}
    max_body: int = 64 * 1024 * 1024
    max_head: int = 64 * 1024
    read_timeout: float = 30.0
    idle_timeout: float = 120.0
    response_timeout: float = 600.0
    connect_timeout: float = 2.0
    attempts: int = 5
    drain_timeout: float = 30.0
    health_interval: float = 5.0
    predicted_tokens: int = 2_000_000
    predicted_ttl: float = 900.0
    seed: int | None = None
    redis: str = ""
    workers: int = 1
    private: bool = False


def read_config(path: Path | None, flags: dict[str, Any]) -> ServeConfig:
    """The file's settings, with the flags that were given laid over them. Raises ConfigError."""
    settings: dict[str, Any] = {}
    if path is not None:
        settings = _read_yaml(path)
    replicas = [*settings.get("replicas", []), *flags.pop("replicas", [])]
    tokenizers = {**settings.get("tokenizers", {}), **flags.pop("tokenizers", {})}
    settings.update({name: value for name, value in flags.items() if value is not None})
    try:
        config = msgspec.convert({**settings, "replicas": replicas, "tokenizers": tokenizers}, type=ServeConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path or 'flags'}: {error}") from None
    _check(config)
    return config


def parse_replica(text: str) -> dict[str, Any]:
    """`URL`, or `MODEL=URL` for a replica that serves only that model name or prefix."""
    models, separator, url = text.rpartition("=")
    if separator and "://" in models:  # the = belongs to the URL
        return {"url": text}
    return {"url": url, "models": [models]} if models else {"url": url}


def parse_tokenizer(text: str) -> tuple[str, str]:
    """`DIR` for every model, or `MODEL=DIR`."""
    model, _, directory = text.rpartition("=")
    return model, directory


def parse_address(text: str, flag: str) -> tuple[str, int]:
    """`HOST:PORT`, `:PORT` for every interface, `[::1]:PORT` for IPv6. Raises ConfigError."""
    host, separator, port = text.rpartition(":")
    if not separator or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"{flag} {text!r} is not an address; write HOST:PORT, such as 127.0.0.1:8080")
    return host.strip("[]") or "0.0.0.0", int(port)


def spell_address(host: str, port: int) -> str:
    """What `parse_address` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not YAML: {error}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"--config {path} must be a mapping of settings, such as `policy: kv`")
    for name, kind in (("replicas", list), ("tokenizers", dict)):
        if not isinstance(settings.get(name, kind()), kind):
            raise ConfigError(f"--config {path}: `{name}` must be a {'list' if kind is list else 'mapping'}")
    return settings


def _check(config: ServeConfig) -> None:
    parse_address(config.listen, "--listen")
    parse_address(config.control, "--control")
    if config.policy not in POLICIES:
        raise ConfigError(f"--policy {config.policy!r} is unknown; choose one of: {', '.join(POLICIES)}")
    for name in ("max_body", "max_head", "attempts", "predicted_tokens", "workers"):
        if getattr(config, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
    for name in (
        "read_timeout",
        "idle_timeout",
        "response_timeout",
        "connect_timeout",
        "health_interval",
        "predicted_ttl",
    ):
        if not 0 < getattr(config, name) < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} must be more than 0 seconds")
    if not 0 <= config.drain_timeout < math.inf:
        raise ConfigError("--drain-timeout must be 0 seconds or more")
    _check_workers(config)
    _check_redis(config.redis)


def _check_workers(config: ServeConfig) -> None:
    if config.workers > 1 and not (config.redis or config.private):
        raise ConfigError(f"--workers {config.workers}: workers share one tree: give --redis")
    _, port = parse_address(config.control, "--control")
    if port and port + config.workers - 1 > 65535:
        raise ConfigError(
            f"--control {config.control}: worker k listens on port {port} + k, "
            f"which leaves no port for {config.workers} workers; choose a lower one"
        )


def _check_redis(url: str) -> None:
    if not url:
        return
    from radix.redis_link import RedisUrlError, open_link  # loads redis-py, which a router without a Redis never needs

    try:
        open_link(url)  # connects to nothing yet
    except RedisUrlError as error:
        raise ConfigError(f"--redis: {error}") from None
