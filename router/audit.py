"""The audit: what each replica holds, against what Redis and the routers believe that it holds.

Owns the comparison and its report. Must never change anything (`audit_repair.py` does), nor take movement for error:
blocks come and go while one looks, so a difference counts only if the same keys differ in every one of several looks.

A *place* is where something is believed: Redis, or a router. A *false positive* is a block that a place believes in and
the replica does not hold, a *false negative* one that the replica holds and the place does not know of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

EXAMPLES = 8
AT_ONCE = 4  # replicas that are looked at; each look holds whole block lists


@dataclass(frozen=True, slots=True)
class Look:
    """What a replica holds, or what a place believes it to hold. With a `problem` nothing is known but that; `absent`:
    the place does not know such a replica. `note` is worth telling.
    """

    keys: AbstractSet[int] = frozenset()
    epoch: int | None = None
    problem: str = ""
    absent: bool = False
    note: str = ""


class Place(Protocol):
    """Redis, or a router."""

    @property
    def label(self) -> str: ...

    @property
    def problem(self) -> str:
        """Why the last `refresh` failed; empty when it did not."""
        ...

    @property
    def members(self) -> dict[str, str]:
        """URLs of the replicas that report, by name."""
        ...

    async def refresh(self) -> None:
        """Begin another look. Raises nothing; see `problem`."""
        ...

    async def believed(self, name: str) -> Look: ...


class PlaceReport(msgspec.Struct, frozen=True):
    """One replica at one place. Counts are of blocks; None where `problem` says why there is nothing to count."""

    blocks: int | None
    false_positives: int | None
    false_negatives: int | None
    problem: str = ""
    note: str = ""
    examples: tuple[str, ...] = ()  # some of the keys that differ, in hexadecimal

    @property
    def differences(self) -> int:
        return (self.false_positives or 0) + (self.false_negatives or 0)


class ReplicaReport(msgspec.Struct, frozen=True):
    """`blocks` is what the replica holds, None where `problem` says why that is not known."""

    name: str
    url: str
    blocks: int | None
    problem: str
    looks: int
    places: dict[str, PlaceReport]

    @property
    def differences(self) -> int:
        return sum(place.differences for place in self.places.values())


class AuditReport(msgspec.Struct, frozen=True):
    """`problems` are of places as a whole; `left`: replicas that left while one looked."""

    replicas: tuple[ReplicaReport, ...]
    problems: dict[str, str]
    places: tuple[str, ...]
    left: tuple[str, ...] = ()

    @property
    def differences(self) -> int:
        return sum(replica.differences for replica in self.replicas)

    @property
    def complete(self) -> bool:
        """Whether everything could be looked at."""
        return not self.problems and not any(
            replica.problem or any(place.problem for place in replica.places.values()) for replica in self.replicas
        )

    @property
    def exit_code(self) -> int:
        """0: no differences. 1: differences. 2: something could not be looked at."""
        return (1 if self.differences else 0) if self.complete else 2


class Comparison:
    """One replica at one place, over several looks, until it is `settled`."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._failures = 0
        self._streak = 0
        self._more: AbstractSet[int] = frozenset()
        self._less: AbstractSet[int] = frozenset()
        self.last = Look(problem="not looked at")

    @property
    def settled(self) -> bool:
        """No difference in the last look, the same differences in enough of them, or enough of them in vain."""
        clean = self._streak > 0 and not self._more and not self._less
        return clean or self._streak >= self._rounds or self._failures >= self._rounds

    def take(self, held: Look, believed: Look) -> None:
        self.last = believed
        if held.problem or believed.problem:
            self._failures += 1
            self._streak = 0
            return
        more, less = believed.keys - held.keys, held.keys - believed.keys
        self._more = self._more & more if self._streak else more
        self._less = self._less & less if self._streak else less
        self._streak += 1

    def report(self) -> PlaceReport:
        last = self.last
        if not self._streak:
            return PlaceReport(None, None, None, problem=last.problem)
        examples = [*sorted(self._more)[:EXAMPLES], *sorted(self._less)[:EXAMPLES]][:EXAMPLES]
        return PlaceReport(
            blocks=len(last.keys),
            false_positives=len(self._more),
            false_negatives=len(self._less),
            note=last.note,
            examples=tuple(f"{key:016x}" for key in examples),
        )


class Subject:
    """One replica under audit."""

    def __init__(self, name: str, url: str, places: Sequence[Place], rounds: int) -> None:
        self.name = name
        self.url = url
        self.held = Look(problem="not looked at")
        self.looks = 0
        self._comparisons = [(place, Comparison(rounds)) for place in places]

    @property
    def settled(self) -> bool:
        return all(comparison.settled for _, comparison in self._comparisons)

    @property
    def gone(self) -> bool:
        """No place knows it any more, and it does not answer."""
        return bool(self.held.problem) and all(comparison.last.absent for _, comparison in self._comparisons)

    async def look(self, held: Callable[[str, str], Awaitable[Look]]) -> None:
        waiting = [(place, comparison) for place, comparison in self._comparisons if not comparison.settled]
        self.held, *beliefs = await asyncio.gather(
            held(self.name, self.url), *(place.believed(self.name) for place, _ in waiting)
        )
        self.looks += 1
        for (_, comparison), believed in zip(waiting, beliefs, strict=True):
            comparison.take(self.held, _with_note(self.held, believed))

    def report(self) -> ReplicaReport:
        held = self.held
        return ReplicaReport(
            name=self.name,
            url=self.url,
            blocks=None if held.problem else len(held.keys),
            problem=held.problem,
            looks=self.looks,
            places={place.label: comparison.report() for place, comparison in self._comparisons},
        )


async def audit(
    places: Sequence[Place], held: Callable[[str, str], Awaitable[Look]], rounds: int, pause_s: float
) -> AuditReport:
    """Look at every replica that a place knows, `rounds` times where there are differences, `pause_s` apart.

    `held(name, url)` asks the replica itself. Raises nothing of what it meets on its way: the report says it.
    """
    subjects: dict[str, Subject] = {}
    begun = 0
    while True:
        await asyncio.gather(*(place.refresh() for place in places))
        begun += 1
        away = any(place.problem for place in places)
        if begun <= rounds:  # those that come later are left to the next audit, lest this one never ends
            for place in places:
                for name, url in place.members.items():
                    subjects.setdefault(name, Subject(name, url, places, rounds))
        await _look_at([subject for subject in subjects.values() if not subject.settled], held)
        if all(subject.settled for subject in subjects.values()) and not (away and begun < rounds):
            break
        await asyncio.sleep(pause_s)
    return AuditReport(
        replicas=tuple(subject.report() for _, subject in sorted(subjects.items()) if not subject.gone),
        problems={place.label: place.problem for place in places if place.problem},
        places=tuple(place.label for place in places),
        left=tuple(name for name, subject in sorted(subjects.items()) if subject.gone),
    )


async def _look_at(subjects: Sequence[Subject], held: Callable[[str, str], Awaitable[Look]]) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(subject: Subject) -> None:
        async with room:
            await subject.look(held)

    await asyncio.gather(*(one(subject) for subject in subjects))


def _with_note(held: Look, believed: Look) -> Look:
    if held.problem or believed.problem or held.epoch == believed.epoch:
        return believed
    note = f"speaks of incarnation {believed.epoch}, the replica is incarnation {held.epoch}"
    return replace(believed, note="; ".join(filter(None, (believed.note, note))))
