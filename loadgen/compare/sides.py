"""The sides of a comparison: what a user writes for each, and the stand that it becomes.

Owns the forms. Must never start anything by itself: whoever enters the stand does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from urllib.parse import urlsplit

import msgspec

from loadgen.compare.schema import Kind
from loadgen.fleet import FleetParameters
from loadgen.runs.command import filled_in
from loadgen.runs.ready import is_url
from loadgen.runs.stands import Stand, command_stand, policy_stand, url_stand
from scoring.policies import POLICIES

FORMS = "a policy (kv), a URL, NAME=POLICY, NAME=URL[,URL...], or NAME=!COMMAND with {port} and {replicas}"


class SideSpec(msgspec.Struct, frozen=True):
    """`what` is a policy, URLs with commas between, or a command line."""

    name: str
    kind: Kind
    what: str

    @property
    def fresh(self) -> bool:
        """Whether each run has servers of its own."""
        return self.kind != "url"

    def stand(
        self, fleet: FleetParameters, seed: int, model: str, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[Stand]:
        """`fleet` and `seed` are for what is started, `model` and `headers` for URLs."""
        if self.kind == "policy":
            return policy_stand(self.what, fleet, seed, name=self.name)
        if self.kind == "command":
            return command_stand(self.name, self.what, fleet)
        return url_stand(self.what.split(","), name=self.name, model=model, headers=headers)


def parse_sides(texts: Sequence[str]) -> tuple[SideSpec, ...]:
    """Raises ValueError for a text that is none, for fewer than two, and for two of one name; BadCommand, which is one,
    for a command that cannot be run.
    """
    sides = tuple(map(parse_side, texts))
    if len(sides) < 2:
        raise ValueError(f"a comparison needs two sides or more: {FORMS}")
    names = [side.name for side in sides]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two sides are called {name!r}; name them apart: NAME={name}")
    return sides


def parse_side(text: str) -> SideSpec:
    """Raises ValueError, with the forms, when it is none."""
    if _is_url(text):
        return SideSpec(urlsplit(text).netloc.rpartition("@")[2], "url", text)
    name, equals, what = text.partition("=")
    if not equals:
        name = what = text
    if not name:
        raise ValueError(f"{text!r} has no name before its =; a side is {FORMS}")
    if what in POLICIES:
        return SideSpec(name, "policy", what)
    if equals and what.startswith("!"):
        filled_in(what[1:], 1, ())  # what is wrong with it is better said before anything runs
        return SideSpec(name, "command", what[1:])
    if equals and all(map(_is_url, what.split(","))):
        return SideSpec(name, "url", what)
    raise ValueError(f"{text!r} is no side; one is {FORMS}. Policies: {', '.join(POLICIES)}")


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://")) and is_url(text)
