"""Events: what is done to a fleet while it is asked, and when.

Owns their written form, and doing them. Must never change what is asked: a plan does not know of its events.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from asyncio.subprocess import DEVNULL, STDOUT
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import aiohttp
import msgspec

from loadgen.processes import ChildFailed
from loadgen.reports.schema import Happened
from loadgen.runs.stands import Stand

Deed = Literal["kill", "stop", "cont", "add", "flush", "slow", "sh"]
FORMS = (
    "AT:kill:NAME, AT:stop:NAME (SIGSTOP), AT:cont:NAME, AT:add (a replica), AT:flush:NAME (its cache), "
    "AT:slow:NAME:FACTOR (times as long; 1 ends it) or AT:sh:COMMAND; AT in seconds from the run's start"
)
ADMIN_S = 5.0
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "cont": signal.SIGCONT}
_ERROR_BYTES = 300


class Event(msgspec.Struct, frozen=True):
    """`name` is that of a process or a replica; `factor` counts for slow, `command` for sh."""

    at_s: float
    deed: Deed
    name: str = ""
    factor: float = 1.0
    command: str = ""

    def __str__(self) -> str:
        match self.deed:
            case "sh":
                return f"sh: {self.command}"
            case "slow":
                return f"slow {self.name} x{self.factor:g}"
            case _:
                return f"{self.deed} {self.name}".rstrip()


def parse_event(text: str) -> Event:
    """Raises ValueError, naming the forms, for anything else."""
    at, _, rest = text.partition(":")
    deed, _, rest = rest.partition(":")
    try:
        at_s = float(at)
        if not (0 <= at_s < float("inf") and deed in get_args(Deed)):
            raise ValueError
        if deed == "sh" and rest.strip():
            return Event(at_s, "sh", command=rest)
        words = rest.split(":") if rest else []
        return Event(at_s, *_arguments(deed, words))
    except ValueError:
        raise ValueError(f"{text!r} is not an event; the forms are {FORMS}") from None


def _arguments(deed: str, words: Sequence[str]) -> tuple[Deed, str, float]:
    match deed, words:
        case "add", []:
            return "add", "", 1.0
        case "slow", [name, factor] if name and 0 < float(factor) < float("inf"):
            return "slow", name, float(factor)
        case "kill" | "stop" | "cont" | "flush", [name] if name:
            return deed, name, 1.0
        case _:
            raise ValueError(deed)


def check_events(events: Sequence[Event], stand: Stand, duration_s: float) -> None:
    """Raises ValueError for the first event that this stand cannot have."""
    for event in events:
        if event.at_s > duration_s:
            raise ValueError(f"event {event} at {event.at_s:g} s comes after the run's {duration_s:g} s")
        if event.deed == "add" and not stand.can_add:
            raise ValueError(f"event {event}: replicas can only join a router of our own (--policy)")
        if event.deed in _SIGNALS and not _later(event, events) and stand.process(event.name) is None:
            raise ValueError(f"event {event}: {event.name!r} is no process that was started here")
        if event.deed in ("flush", "slow") and not _later(event, events) and event.name not in stand.replicas:
            known = ", ".join(stand.replicas) or "none; name a router's --control where it runs already"
            raise ValueError(f"event {event}: no such replica; known: {known}")


def _later(event: Event, events: Sequence[Event]) -> bool:
    """Whether a replica is added before, which may be the one that is meant."""
    return any(other.deed == "add" and other.at_s < event.at_s for other in events)


async def play(events: Sequence[Event], stand: Stand, clock: Callable[[], float], happened: list[Happened]) -> None:
    """Does each at its time, and writes down in `happened` when that was and whether it went as asked.

    `clock` is the run's. Cancelled, it ends the commands that are still under way, and writes down what was not
    begun.
    """
    waiting = deque(sorted(events, key=lambda event: event.at_s))
    try:
        async with asyncio.TaskGroup() as deeds:
            while waiting:
                await asyncio.sleep(max(0.0, waiting[0].at_s - clock()))
                deeds.create_task(_do(waiting.popleft(), stand, clock, happened))
    finally:
        happened += [Happened(clock(), str(event), f"the run ended before {event.at_s:g} s") for event in waiting]


async def _do(event: Event, stand: Stand, clock: Callable[[], float], happened: list[Happened]) -> None:
    at_s, what, error = clock(), str(event), "the run ended before it was done"
    try:
        what, error = await _done(event, stand), ""
    except (ChildFailed, aiohttp.ClientError, OSError, RuntimeError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    finally:
        happened.append(Happened(at_s, what, error))


async def _done(event: Event, stand: Stand) -> str:
    """What was done, in words. Raises one of the errors that `_do` names when it was not."""
    match event.deed:
        case "kill" | "stop" | "cont":
            process = stand.process(event.name)
            if process is None:
                raise RuntimeError(f"{event.name!r} is no process that was started here")
            process.may_end = process.may_end or event.deed == "kill"
            process.signal_group(_SIGNALS[event.deed])
        case "add":
            return f"add {await stand.add()}"
        case "flush":
            await _admin(stand, event.name, "flush")
        case "slow":
            await _admin(stand, event.name, f"slow?factor={event.factor:g}")
        case "sh":
            await _shell(event.command)
    return str(event)


async def _admin(stand: Stand, name: str, path: str) -> None:
    if name not in stand.replicas:
        raise RuntimeError(f"{name!r} is no replica here")
    url = f"{stand.replicas[name]}/admin/{path}"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ADMIN_S)) as http:
        async with http.post(url) as response:
            if response.status == 404:
                raise RuntimeError(f"{name} is no simulated replica: it has no POST /admin/{path}")
            if response.status != 200:
                raise RuntimeError(f"HTTP {response.status}: {(await response.text())[:_ERROR_BYTES]}")


async def _shell(command: str) -> None:
    """To the command's end; what it started and left behind ends with it.

    Raises RuntimeError with the end of its output when it fails.
    """
    with tempfile.TemporaryFile() as output:  # a pipe would stay open for as long as anything that it started
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", command), stdin=DEVNULL, stdout=output, stderr=STDOUT, start_new_session=True
            )
        )
        try:
            process = await asyncio.shield(starting)
            await process.wait()
        finally:
            process = await starting  # cancelled, it may run already, and have started others
            _end_group(process.pid)
            await process.wait()
        if process.returncode:
            output.seek(0)
            said = output.read()[-_ERROR_BYTES:].decode(errors="replace")
            raise RuntimeError(f"it ended with {process.returncode}: {said}")


def _end_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # all of it has ended
