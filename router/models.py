"""From the model name in a request to the replicas that may serve it.

Owns name resolution. A replica lists names (`qwen/qwen3-8b`) or prefixes, which end in `/` or `:` (`qwen/`, `base:`);
a name also covers its adapters (`base` serves `base:french`). An exact name wins over any prefix, a longer prefix
over a shorter one, and any of them over replicas that have not said what they serve.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pygtrie

if TYPE_CHECKING:
    from router.fleet import Replica
    from router.prompt import ExactPrompts, TextPrompts

    PromptReader = TextPrompts | ExactPrompts

PREFIX_ENDS = ("/", ":")
MAX_REMEMBERED = 4096


class Pool:
    """The replicas of one model name or prefix. `members` are all of them, `up` those that can take a request now."""

    __slots__ = ("members", "names", "reader", "up")

    def __init__(self, members: tuple[Replica, ...]) -> None:
        self.members = members
        self.up = tuple(replica for replica in members if replica.state.value == "up")
        self.names = tuple(replica.name for replica in self.up)
        self.reader: PromptReader | None = None  # chosen when the first prompt comes


class ModelTable:
    """Immutable but for its memory of answers: the fleet makes a new one at every change."""

    def __init__(self, replicas: Iterable[Replica]) -> None:
        everyone = tuple(replicas)
        exact: dict[str, list[Replica]] = {}
        prefixes: dict[str, list[Replica]] = {}
        anything = []
        for replica in everyone:
            if replica.serves is None:
                anything.append(replica)
                continue
            for name in replica.serves:
                if name.endswith(PREFIX_ENDS):
                    prefixes.setdefault(name, []).append(replica)
                else:
                    exact.setdefault(name, []).append(replica)
                    prefixes.setdefault(name + ":", []).append(replica)
        pools: dict[tuple[str, ...], Pool] = {}

        def pool(members: list[Replica]) -> Pool:
            return pools.setdefault(tuple(replica.name for replica in members), Pool(tuple(members)))

        self.everyone = Pool(everyone)
        self._exact = {name: pool(members) for name, members in exact.items()}
        self._prefixes = pygtrie.CharTrie()
        for name, members in prefixes.items():
            self._prefixes[name] = pool(members)
        self._anything = pool(anything) if anything else None
        self._remembered: dict[str, Pool | None] = dict(self._exact)

    @property
    def names(self) -> list[str]:
        """Every exact model name."""
        return list(self._exact)

    def resolve(self, model: str) -> Pool | None:
        """The pool of `model`, or None when no replica serves it."""
        try:
            return self._remembered[model]
        except KeyError:
            found = self._search(model)
            if len(self._remembered) < MAX_REMEMBERED:  # a client may invent names without end
                self._remembered[model] = found
            return found

    def _search(self, model: str) -> Pool | None:
        step = self._prefixes.longest_prefix(model)
        return step.value if step else self._anything
