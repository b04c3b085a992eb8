"""Where a command's results go: standard output, and files.

Owns what happens when one of them takes no more. Must never let that cost what others still take: a run may have been
an hour.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TextIO, cast

import click
from rich.console import Console


class Output(Console):
    """Standard output: as wide as the terminal; `width` where there is none, so that a table has room.

    When it takes no more, `on_lost` is called once, and what is printed from then on goes nowhere. That is said on
    standard error, unless the reader left on purpose (`| head`).
    """

    def __init__(self, width: int, on_lost: Callable[[], object] = lambda: None) -> None:
        self._standard = _Standard(sys.stdout, on_lost)
        super().__init__(file=cast(IO[str], self._standard), width=None if self._standard.isatty() else width)

    def check(self) -> None:
        """Exits with 1 when something could not be printed, unless the reader left on purpose."""
        if self._standard.lost is not None and not isinstance(self._standard.lost, BrokenPipeError):
            raise SystemExit(1)


class _Standard(io.TextIOBase):
    def __init__(self, file: TextIO, on_lost: Callable[[], object]) -> None:
        self.lost: OSError | None = None
        self._file = file
        self._on_lost = on_lost

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has it as a plain attribute
        return self._file.encoding

    def isatty(self) -> bool:
        return self._file.isatty()

    def fileno(self) -> int:
        return self._file.fileno()

    def write(self, text: str) -> int:
        """What the encoding does not have is written as a question mark."""
        self._try(lambda: self._file.write(text.encode(self.encoding, "replace").decode(self.encoding)))
        return len(text)

    def flush(self) -> None:
        self._try(self._file.flush)

    def _try(self, put: Callable[[], object]) -> None:
        if self.lost is not None:
            return
        try:
            put()
        except OSError as error:
            self.lost = error
            with suppress(OSError):  # what it still holds would fail again when the interpreter ends
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._file.fileno())
                os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                click.echo(f"Error: cannot write to standard output: {error.strerror}.", err=True)
            self._on_lost()


def write_file(flag: str, path: Path | None, write: Callable[[Path], object]) -> str:
    """Writes the file that `flag` asks for, if it does. What went wrong, "" when nothing did."""
    if path is None:
        return ""
    try:
        write(path)
    except OSError as error:
        return f"cannot write {path} ({flag}): {error.strerror}."
    return ""
