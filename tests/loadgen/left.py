"""Processes that a command left behind, found by what it was started with."""

from __future__ import annotations

import os
from pathlib import Path

import loadgen

ROOT = Path(loadgen.__file__).parents[1]


def environment(tmp_path: Path) -> dict[str, str]:
    """Passed on to every process of the run, so that any which is left can be found by its TMPDIR."""
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "160", "PYTHONPATH": python_path}


def running(tmp_path: Path) -> dict[int, list[str]]:
    """Every process of the run: its command line by its id."""
    mark = f"TMPDIR={tmp_path}".encode()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_text().split("\0")
        except OSError:
            continue  # ended meanwhile, or not ours to read
    return found
