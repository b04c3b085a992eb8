"""What a command makes sure of before its first run, so that an hour of measuring is not lost to a trifle.

Owns these few checks and limits of this process. Must never be needed for a run to be right.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click


def make_room(path: Path, flag: str = "") -> None:
    """Raises ClickException when no file can be written there. Leaves none where there was none."""
    there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise click.ClickException(f"cannot write {path}{flag and f' ({flag})'}: {error.strerror}.") from None


def make_rooms(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None] | None = None) -> None:
    """Both by flag. Raises ClickException also where two would be one file, and lose what was written first or read."""
    taken = {path.resolve(): flag for flag, path in (inputs or {}).items() if path is not None}
    for flag, path in outputs.items():
        if path is None:
            continue
        if path.is_file() or not path.exists():  # else a device, such as /dev/null
            other = taken.setdefault(path.resolve(), flag)
            if other != flag:
                raise click.UsageError(f"{other} and {flag} are the same file, {path}; give each its own.")
        make_room(path, flag)


def check_url(context: click.Context, option: click.Parameter, given: Any) -> Any:
    """The callback of an option that is a URL, or repeats. Raises BadParameter for what is none."""
    for text in (given,) if isinstance(given, str) else given or ():
        if not is_url(text):
            raise click.BadParameter(f"{text!r} is not a URL such as http://127.0.0.1:8080.")
    return given


def is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port or an IPv6 address that is none
        return False


def allow_many_connections() -> None:
    """Each request under way is one: as many as this process may have; what it starts inherits that."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, OSError):
        pass  # some systems allow less than they say


def read_headers(context: click.Context, option: click.Parameter, texts: Sequence[str]) -> dict[str, str]:
    """The callback of `--header`, repeated. Raises BadParameter for a text that is none."""
    headers = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter(f"{text!r} is not NAME: VALUE, such as 'Authorization: Bearer KEY'.")
        headers[name.strip()] = value.strip()
    return headers
