"""The plainest reader of the event log: a dictionary from resident key to parent key."""

from __future__ import annotations

from collections.abc import Iterable

from radix.events import AllBlocksCleared, BlockRemoved, BlockStored, Event


class Replay:
    """Applies events, and refuses what no true log can say."""

    def __init__(self, stored: Iterable[Event] = ()) -> None:
        self.parents: dict[int, int | None] = {}
        self.apply(stored)

    def apply(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, BlockStored):
                parent = event.parent
                for key in event.keys:
                    assert key not in self.parents, "stored twice without being removed"
                    assert parent is None or parent in self.parents, "stored before its parent"
                    self.parents[key] = parent
                    parent = key
            elif isinstance(event, BlockRemoved):
                for key in event.keys:
                    del self.parents[key]
                    assert key not in self.parents.values(), "removed before its child"
            else:
                assert isinstance(event, AllBlocksCleared)
                self.parents.clear()
