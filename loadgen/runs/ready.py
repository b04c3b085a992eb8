"""What a command makes sure of before its first run, so that an hour of measuring is not lost to a trifle.

Owns these few checks and limits of this process. Must never be needed for a run to be right.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path

import click


def make_room(path: Path) -> None:
    """Raises ClickException when no file can be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}.") from None


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
