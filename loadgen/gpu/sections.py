"""How the sections of `make gpu-bench` run: each in its own process and in its own time.

Owns the processes. A kernel that reads where it must not makes its whole process unusable, and one that hangs never
returns: so a section runs apart, hands over each row as soon as it has it, and is ended when its time is long over.
Must never know what is measured, and never import torch.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from loadgen.gpu.report import Ceilings, Failure, Row, Section, Skipped

LEAVE_S = 5.0

News = Row | Failure | Skipped


@dataclass(frozen=True, slots=True)
class Setting:
    """What every section is told. `device`: as torch names it. `ceilings` is empty for the section that finds them."""

    device: str
    smoke: bool
    ceilings: Ceilings = field(default_factory=Ceilings)


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure: its name, and a function that returns the rows."""

    name: str
    measure: Callable[[], Iterable[Row]]


class TooLarge(Exception):
    """The case does not fit this device; the message says what it would take. It counts as skipped."""


Cases = Callable[[Setting], Iterable[Case]]


@dataclass(frozen=True, slots=True)
class Plan:
    """A section to come. `cases` is a module's function; the important ones come first. `share_s`: its time."""

    name: str
    title: str
    share_s: float
    cases: Cases


def measured(cases: Cases, setting: Setting, deadline: float) -> Generator[News]:
    """Runs the cases one after the other; after `deadline` (time.monotonic) the rest is skipped."""
    try:
        for case in cases(setting):
            if time.monotonic() > deadline:
                yield Skipped(case.name, "the section's time was used up")
                continue
            try:
                yield from case.measure()
            except TooLarge as reason:
                yield Skipped(case.name, str(reason))
            except Exception as error:
                yield Failure(case.name, _reason(error))
    except Exception as error:
        yield Failure("the section", _reason(error))


def _reason(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {words} ({last.filename.rsplit('/', 1)[-1]}:{last.lineno})"


def run_section(
    plan: Plan, setting: Setting, deadline: float, last_moment: float, tell: Callable[[News], None]
) -> Section:
    """Begins no case after `deadline`, and ends a process that is still at work at `last_moment`; both are of
    time.monotonic. `tell` hears of everything at once. On a CUDA device in a process of its own, elsewhere in this one.
    """
    section = Section(plan.name, plan.title)
    started = time.monotonic()
    if setting.device == "cuda":
        news = apart(plan.cases, setting, deadline, last_moment)
    else:
        news = measured(plan.cases, setting, deadline)
    with closing(news):
        for item in news:
            _book(section, item)
            tell(item)
    section.seconds = time.monotonic() - started
    return section


def _book(section: Section, news: News) -> None:
    match news:
        case Row():
            section.rows.append(news)
        case Failure():
            section.failures.append(news)
        case Skipped():
            section.skipped.append(news)


def apart(cases: Cases, setting: Setting, deadline: float, last_moment: float) -> Generator[News]:
    """As `measured`, in a process of its own, which is gone when this ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(cases, setting, deadline, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield from _heard(ours, last_moment, process)
    finally:
        ours.close()
        process.terminate()
        process.join(LEAVE_S)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def _heard(connection: Connection, last_moment: float, process: multiprocessing.context.SpawnProcess) -> Iterator[News]:
    """What the child says until it says None, dies or is past its last moment."""
    while True:
        if not connection.poll(max(0.0, last_moment - time.monotonic())):
            yield Failure(
                "the section", "it hung or took far too long, and was ended; what it had not reported is lost"
            )
            return
        try:
            news = connection.recv()
        except EOFError:
            process.join()
            yield Failure("the section", f"its process died (exit code {process.exitcode})")
            return
        if news is None:
            return
        yield news


def _child(cases: Cases, setting: Setting, deadline: float, connection: Connection) -> None:
    for news in measured(cases, setting, deadline):
        connection.send(news)
    connection.send(None)
