"""What a person sees while a model is loaded: a bar in a terminal, a line a quarter in a log.

Owns that output; everything goes to stderr, for stdout is for the ready line.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def loading_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Gives the function that is told (bytes loaded, bytes in all). Nothing is shown before it is called."""
    if not sys.stderr.isatty():
        yield _Quarters(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("loading {task.description}"), BarColumn(), DownloadColumn(True), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


class _Quarters:
    def __init__(self, what: str) -> None:
        self._what = what
        self._told = 0

    def __call__(self, done: int, total: int) -> None:
        quarter = 4 * done // total if total else 4
        if quarter > self._told:
            self._told = quarter
            log.info("loading %s: %d %%", self._what, 25 * quarter)
