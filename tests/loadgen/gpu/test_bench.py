"""The GPU benchmark without a GPU: the whole command on tiny shapes, and how a section fails without the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec
import pytest
from click.testing import CliRunner, Result

import loadgen
from loadgen.gpu.bench import PLANS, main
from loadgen.gpu.report import (
    GOALS,
    SCHEMA,
    Failure,
    NotAReport,
    Report,
    Row,
    Skipped,
    markdown,
    read_json,
    row,
)
from loadgen.gpu.sections import Case, News, Plan, Setting, TooLarge, apart, measured, run_section

ROOT = Path(loadgen.__file__).parents[1]
CPU = Setting("cpu", smoke=True)
NEVER = 1e12


# The whole command ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("bench") / "new" / "gpu_bench.json"
    try:
        result = CliRunner().invoke(main, ["--smoke", "--device", "cpu", "--json", str(path)])
    finally:
        torch.set_num_threads(threads)
    return result, path


def rows_of(report: Report) -> dict[str, Row]:
    return {one.what: one for section in report.sections for one in section.rows}


def test_the_smoke_form_measures_every_section_and_says_that_it_is_one(smoke: tuple[Result, Path]) -> None:
    result, path = smoke
    report = read_json(path)
    assert [failure for section in report.sections for failure in section.failures] == []
    assert result.exit_code == 0, result.output
    assert "SMOKE TEST" in result.stdout
    assert [section.name for section in report.sections] == [plan.name for plan in PLANS]
    assert all(section.rows for section in report.sections)
    assert report.smoke
    assert all(verdict.measured is None for verdict in report.verdicts), "a CPU says nothing about the goals"


def test_kernels_stand_beside_torchs_own_attention_where_that_runs(smoke: tuple[Result, Path]) -> None:
    rows = rows_of(read_json(smoke[1]))
    prefill, decode = rows["prefill 4/2 D 16, bf16: 128"], rows["decode 4/2 D 16, bf16: bs 2, ctx 128"]
    for one in (prefill, decode):
        assert set(one.beside) == {"flash"}, one.note
        assert "no cuDNN" in one.note
        assert one.facts["relative_error"] == pytest.approx(0, abs=1e-5)


def test_the_engines_rows_cover_steps_sequences_and_what_is_switched_off(smoke: tuple[Result, Path]) -> None:
    (engine,) = (section for section in read_json(smoke[1]).sections if section.name == "engine")
    names = " | ".join(one.what for one in engine.rows)
    for part in ("decode step, bs 1", "decode step, bs 3", "prefill, chunks", "12 sequences", "fp8 KV"):
        assert part in names
    rows = {one.what: one for one in engine.rows}
    for part in ("prefix cache off", "overlap off"):
        (name, *_) = (name for name in rows if part in name)
        assert rows[name].beside, "it stands beside the run with it"
    shared = "3 sequences behind a prefix of 32"
    assert rows[shared].facts["cached_tokens"]
    assert not rows[f"{shared}: prefix cache off"].facts["cached_tokens"]
    assert {skipped.why for skipped in engine.skipped} == {"there are no graphs on this device"}


def test_the_json_holds_every_figure_unrounded_under_a_versioned_schema(smoke: tuple[Result, Path]) -> None:
    written = json.loads(smoke[1].read_text())
    assert written["schema"] == SCHEMA == "radixgate.gpu_bench/1"
    report = read_json(smoke[1])
    assert json.loads(msgspec.json.encode(report)) == written
    for one in rows_of(report).values():
        assert one.value > 0
        if one.ceiling is not None:
            assert one.ratio == one.value / one.ceiling


def test_an_earlier_run_can_be_shown_again_as_a_table_or_as_markdown(smoke: tuple[Result, Path]) -> None:
    shown = CliRunner().invoke(main, ["--show", str(smoke[1]), "--markdown"])
    assert shown.stdout.rstrip("\n") == markdown(read_json(smoke[1])).rstrip("\n")
    assert "| copy bandwidth |" in shown.stdout
    assert "copy bandwidth" in CliRunner().invoke(main, ["--show", str(smoke[1])]).stdout


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content, complaint in (('{"schema": "other/9"}', "other/9"), ("[]", "no report"), ("{", "no report")):
        path.write_text(content)
        with pytest.raises(NotAReport, match=complaint):
            read_json(path)
        shown = CliRunner().invoke(main, ["--show", str(path)])
        assert shown.exit_code == 1
        assert complaint in shown.stderr


def test_without_a_gpu_nothing_is_measured_and_the_flags_that_help_are_named(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    path = tmp_path / "x.json"
    result = CliRunner().invoke(main, ["--json", str(path)])
    assert result.exit_code == 1
    assert "nothing was measured" in result.stderr
    assert "--smoke --device cpu" in result.stderr
    assert result.stdout.count("not measured") == len(GOALS)
    assert not path.exists()


def test_a_cpu_is_not_taken_for_a_gpu() -> None:
    result = CliRunner().invoke(main, ["--device", "cpu"])
    assert result.exit_code == 2
    assert "--smoke" in result.stderr


def test_the_command_itself_does_not_load_torch() -> None:
    code = "import sys, loadgen.gpu; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "triton"} & set(loaded.split())


# Sections ---------------------------------------------------------------------------------------------------------


def one_row(what: str) -> list[Row]:
    return [row(what, 2.0, "s", ceiling=4.0)]


def broken() -> list[Row]:
    raise RuntimeError("the kernel [did] not compile")


def too_large() -> list[Row]:
    raise TooLarge("needs 90 GiB")


def mixed(setting: Setting) -> Iterator[Case]:
    yield Case("first", lambda: one_row("first"))
    yield Case("second", broken)
    yield Case("third", too_large)
    yield Case("fourth", lambda: one_row("fourth"))


def dies(setting: Setting) -> Iterator[Case]:
    yield Case("first", lambda: one_row("first"))
    yield Case("second", lambda: os._exit(3))


def hangs(setting: Setting) -> Iterator[Case]:
    def wait() -> list[Row]:
        threading.Event().wait()
        return []

    yield Case("first", wait)


def never_begins(setting: Setting) -> Iterator[Case]:
    raise RuntimeError("no such model")
    yield Case("first", broken)


def test_a_case_that_fails_says_why_and_the_rest_goes_on() -> None:
    first, second, third, fourth = measured(mixed, CPU, NEVER)
    assert isinstance(first, Row)
    assert isinstance(second, Failure)
    assert "RuntimeError: the kernel [did] not compile (test_bench.py:" in second.why
    assert third == Skipped("third", "needs 90 GiB")
    assert isinstance(fourth, Row)


def test_a_section_whose_time_is_up_lists_what_it_did_not_measure() -> None:
    news = list(measured(mixed, CPU, deadline=0.0))
    assert [item.what for item in news] == ["first", "second", "third", "fourth"]
    assert all(isinstance(item, Skipped) and "time" in item.why for item in news)


def test_a_section_that_cannot_begin_is_a_failure() -> None:
    (news,) = measured(never_begins, CPU, NEVER)
    assert isinstance(news, Failure)
    assert "no such model" in news.why


def test_a_process_that_dies_costs_its_section_what_it_had_not_reported() -> None:
    first, second = apart(dies, CPU, NEVER, time.monotonic() + 60)
    assert first == one_row("first")[0]
    assert second == Failure("the section", "its process died (exit code 3)")


def test_a_process_that_hangs_is_ended() -> None:
    (news,) = apart(hangs, CPU, NEVER, time.monotonic() + 1.5)
    assert isinstance(news, Failure)
    assert "hung" in news.why


def test_a_section_of_its_own_process_tells_what_one_in_ours_tells() -> None:
    heard: list[News] = []
    plan = Plan("mixed", "Mixed", 1.0, mixed)
    ours = run_section(plan, CPU, NEVER, NEVER, heard.append)
    apart_news = list(apart(mixed, CPU, NEVER, time.monotonic() + 60))
    assert apart_news == heard
    assert [len(ours.rows), len(ours.failures), len(ours.skipped)] == [2, 1, 1]


def test_what_failed_is_in_the_table_and_in_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_plans = tuple(replace(plan, cases=mixed) for plan in PLANS)
    monkeypatch.setattr("loadgen.gpu.bench.PLANS", broken_plans)
    monkeypatch.setattr("loadgen.gpu.bench.CEILINGS", broken_plans[0])
    result = CliRunner().invoke(main, ["--smoke", "--device", "cpu"])
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "the kernel [did] not compile" in " ".join(result.stdout.split())


# The tests that need a GPU -----------------------------------------------------------------------------------------


def test_a_gpu_check_without_a_gpu_fails_instead_of_skipping(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tests.gpu.conftest import pytest_configure

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    config = cast(pytest.Config, None)
    monkeypatch.delenv("RADIXGATE_GPU", raising=False)
    pytest_configure(config)
    monkeypatch.setenv("RADIXGATE_GPU", "required")
    with pytest.raises(pytest.UsageError, match="nothing was checked: these tests need an NVIDIA GPU"):
        pytest_configure(config)
