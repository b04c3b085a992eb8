"""Somebody else's command line, with the addresses filled in that only we know.

Owns the placeholders. Must never go through a shell: what a user writes is split into words, and no more.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence

from loadgen.processes import free_ports

FORMS = (
    "{port}: where it must listen, on 127.0.0.1; {free_port}: any other free port; {replicas}: the replicas' URLs, "
    "each a word of its own; {replicas,}: the same with commas between; {replicas:--flag}: each after the word --flag"
)
_EACH = re.compile(r"\{replicas:([^{}\s]+)\}")
_OPEN = re.compile(r"\{[^{}]*\}")


class BadCommand(ValueError):
    """A command line that cannot be run, and why."""


def filled_in(command: str, port: int, replicas: Sequence[str]) -> list[str]:
    """The program's path and its arguments. Raises BadCommand when a placeholder or the program is not known."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise BadCommand(f"{command!r} cannot be split into words: {error}") from None
    if not words:
        raise BadCommand("the command is empty")
    if "{port}" not in command:
        raise BadCommand(f"{command!r} does not say where to listen: it needs {{port}}. {FORMS}")
    program = shutil.which(words[0])
    if program is None:
        raise BadCommand(f"there is no program {words[0]!r} in the PATH")
    return [program, *(part for word in words[1:] for part in _filled(word, port, replicas))]


def _filled(word: str, port: int, replicas: Sequence[str]) -> list[str]:
    if word == "{replicas}":
        return list(replicas)
    if each := _EACH.fullmatch(word):
        return [part for url in replicas for part in (each[1], url)]
    word = word.replace("{port}", str(port)).replace("{replicas,}", ",".join(replicas))
    while "{free_port}" in word:
        word = word.replace("{free_port}", str(free_ports(1)[0]), 1)
    if unknown := _OPEN.fullmatch(word):
        raise BadCommand(f"{unknown[0]} means nothing here. {FORMS}")
    return [word]
