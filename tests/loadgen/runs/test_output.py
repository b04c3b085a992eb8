"""Results go where they were wanted, or it is said that they did not."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
import pytest

from loadgen.runs.output import Output, write_file
from loadgen.runs.ready import make_rooms


def test_what_the_terminal_cannot_write_does_not_end_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    output = Output(80)
    output.print("TTFT ≤ 2 s")
    output.check()
    assert written.getvalue() == b"TTFT ? 2 s\n"


def test_what_cannot_be_printed_is_told_once_and_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lost = []
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        output = Output(80, lambda: lost.append(True))
        output.print("one")
        output.print("two")
        monkeypatch.undo()
    assert lost == [True]
    assert capfd.readouterr().err == "Error: cannot write to standard output: No space left on device.\n"
    with pytest.raises(SystemExit) as ended:
        output.check()
    assert ended.value.code == 1


def test_a_file_that_takes_nothing_is_named_by_its_flag(tmp_path: Path) -> None:
    assert write_file("--json", None, lambda path: path.write_text("x")) == ""
    assert write_file("--json", tmp_path / "a", lambda path: path.write_text("x")) == ""
    failure = write_file("--json", Path("/dev/full"), lambda path: path.write_text("x"))
    assert failure == "cannot write /dev/full (--json): No space left on device."


def test_a_place_for_every_file_is_found_beforehand_and_left_empty(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("of before")
    make_rooms({"--json": tmp_path / "deep" / "new", "--html": kept, "--jsonl": None})
    assert not (tmp_path / "deep" / "new").exists()
    assert kept.read_text() == "of before"
    with pytest.raises(click.ClickException, match=r"cannot write .*/kept/new \(--json\)"):
        make_rooms({"--json": kept / "new"})


def test_no_file_is_written_over_another_nor_over_what_is_read(tmp_path: Path) -> None:
    trace, link = tmp_path / "trace", tmp_path / "link"
    trace.write_text("{}")
    link.symlink_to(trace)
    with pytest.raises(click.UsageError, match="--trace and --json are the same file"):
        make_rooms({"--json": link}, {"--trace": trace})
    with pytest.raises(click.UsageError, match="--json and --html are the same file"):
        make_rooms({"--json": tmp_path / "a", "--html": tmp_path / "b" / ".." / "a"})
    make_rooms({"--json": Path("/dev/null"), "--html": Path("/dev/null")})
    assert trace.read_text() == "{}"
