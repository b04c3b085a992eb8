"""`radixgate bench run` as a user runs it: real processes, a small plan, every output, and a clean end."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner

from loadgen.commands.run import run
from loadgen.records import Record
from loadgen.reports.schema import from_json
from tests.loadgen.left import ROOT, environment, running
from tests.loadgen.runs.servers import answer_well, serving
from tests.router.harness import wait_until

TIMEOUT_S = 60
SMALL = ["--replicas", "2", "--speedup", "20", "--workload", "shared-prefix", "--arrivals", "constant:10"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from loadgen.commands.bench import bench; bench()", "run", *arguments]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_small_run_writes_everything_it_was_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = {kind: out / f"run.{kind}" for kind in ("json", "jsonl", "html", "receipts")}
    outputs = [part for kind, path in files.items() for part in (f"--{kind}", str(path))]
    done = subprocess.run(
        command(*SMALL, "--duration", "2", "--event", "1:flush:r0", "--max-lag", "5", *outputs),
        env=environment(tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = from_json(files["json"].read_bytes())
    assert (report.name, report.plan.workload, report.target.replicas) == ("kv", "shared-prefix", 2)
    assert report.validity.valid
    assert (report.figures.requests, report.figures.errors) == (report.plan.requests, 0)
    assert report.figures.predicted_hit_rate is not None
    assert report.figures.regret_mean_s is not None
    assert set(report.ideals) == {"infinite", "pooled_lru"}
    assert [(event.what, event.error) for event in report.events] == [("flush r0", "")]
    records = lines(files["jsonl"])
    assert len(records) == report.figures.requests
    assert [record["due"] for record in records] == sorted(record["due"] for record in records)
    assert set(records[0]) == set(Record.__struct_fields__)
    assert {receipt["request_id"] for receipt in lines(files["receipts"])} == {
        record["request_id"] for record in records
    }
    assert "<svg" in files["html"].read_text()
    for label in ("hit rate", "TTFT p50", "TPOT", "goodput", "lag", "s: flush r0"):
        assert label in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_reported_and_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    figures, log = tmp_path / "figures.json", tmp_path / "log"
    arguments = [
        *SMALL,
        "--replicas",
        "1",
        "--duration",
        "60",
        "--no-ideals",
        "--json",
        str(figures),
        "--event",
        f"1:sh:touch {log}",
    ]
    process = subprocess.Popen(
        command(*arguments), env=environment(tmp_path), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    with process:
        wait_until(log.exists, TIMEOUT_S)
        wait_until(lambda: len(running(tmp_path)) == 3, TIMEOUT_S)  # the client, its router, its replica; no more shell
        process.send_signal(number)
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + number
    report = from_json(figures.read_bytes())
    assert not report.validity.valid
    assert f"it was interrupted: {signal.Signals(number).name} after" in report.validity.reasons[0]
    assert 5 <= report.figures.requests < report.plan.requests
    assert b"it was interrupted" in output
    assert running(tmp_path) == {}
    assert {path.name for path in tmp_path.iterdir()} == {"figures.json", "log"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_over_is_written_when_somebody_does_not_wait_for_its_ideals(tmp_path: Path, number: int) -> None:
    """Of conversations whose first request fails few are asked; their ideals take a minute, of all their turns."""
    figures, requests = tmp_path / "figures.json", tmp_path / "requests.jsonl"
    long = ["--workload", "chat", "--set", "turns=400", "--arrivals", "constant:10", "--set", "think_s=0"]
    outputs = ["--json", str(figures), "--jsonl", str(requests)]
    nobody = ["--url", "http://127.0.0.1:1", "--model", "m", "--duration", "1"]
    process = subprocess.Popen(
        command(*nobody, *long, *outputs),
        env=environment(tmp_path),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with process:
        wait_until(lambda: requests.exists() and requests.stat().st_size > 0, TIMEOUT_S)
        process.send_signal(number)
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + number, output.decode()
    report = from_json(figures.read_bytes())
    assert len(lines(requests)) == report.figures.requests == 10
    assert report.ideals == {}
    assert not any("interrupted" in reason for reason in report.validity.reasons)  # all was asked
    assert b"--no-ideals" in output


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """A run in a second, without a server, of which there is a result all the same."""
    nobody = ["--url", "http://127.0.0.1:1", "--model", "m", "--workload", "shared-prefix", "--no-ideals"]
    return command(*nobody, "--arrivals", "constant:10", "--duration", "1")


@pytest.mark.parametrize("flag", ["--json", "--jsonl", "--html"])
def test_a_file_that_cannot_be_written_costs_nothing_else(tmp_path: Path, small: list[str], flag: str) -> None:
    others = {other: tmp_path / other for other in {"--json", "--jsonl", "--html"} - {flag}}
    outputs = [part for other, path in others.items() for part in (other, str(path))]
    done = subprocess.run(
        [*small, flag, "/dev/full", *outputs],
        env=environment(tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 1
    assert f"cannot write /dev/full ({flag}): No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert all(path.stat().st_size > 0 for path in others.values())
    assert "client's own lag p50" in done.stdout


def test_a_run_goes_on_to_its_files_when_nobody_reads_what_it_prints(tmp_path: Path, small: list[str]) -> None:
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec 3>&1; ("$@"; echo "exit $?" >&3) | true', "sh", *small, "--json", str(figures)],
        env=environment(tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.stdout == "exit 1\n"  # all of its requests failed
    assert done.stderr == ""
    assert from_json(figures.read_bytes()).figures.requests == 10


def test_a_run_that_nobody_reads_and_that_writes_nothing_ends(tmp_path: Path, small: list[str]) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec 3>&1; ("$@"; echo "exit $?" >&3) | true', "sh", *small, "--duration", "1000"],
        env=environment(tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.stdout == f"exit {128 + signal.SIGPIPE}\n"
    assert done.stderr == ""


def test_a_full_disk_behind_standard_output_is_said(tmp_path: Path, small: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*small, "--json", str(tmp_path / "figures.json")],
            env=environment(tmp_path),
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
        )
    assert (done.returncode, done.stderr) == (1, "Error: cannot write to standard output: No space left on device.\n")
    assert from_json((tmp_path / "figures.json").read_bytes()).figures.requests == 10


async def test_a_running_server_is_asked_and_its_errors_exit_with_1(tmp_path: Path) -> None:
    async def break_on_long_answers(request: web.Request) -> web.StreamResponse:
        if (await request.json())["max_tokens"] > 40:
            return web.Response(status=500, text="too long for me")
        return await answer_well(request)

    figures = tmp_path / "figures.json"
    async with serving(break_on_long_answers) as url:
        arguments = ["--url", url, "--model", "m", "--header", "Authorization: Bearer secret", "--json", str(figures)]
        process = await asyncio.create_subprocess_exec(
            *command(*arguments, "--workload", "rag", "--arrivals", "constant:10", "--duration", "1", "--form", "chat"),
            env=environment(tmp_path),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = await process.communicate()
    assert process.returncode == 1, output.decode()
    report = from_json(figures.read_bytes())
    assert 0 < report.figures.errors < report.figures.requests
    assert report.error_messages == {"HTTP 500: too long for me": report.figures.errors}
    assert b"HTTP 500: too long for me" in output
    assert "secret" not in figures.read_text()
    assert list(report.ideals) == ["infinite"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--url", "http://127.0.0.1:1"], "did not answer"),
        (["--url", "http://127.0.0.1:1", "--command", "x"], "exclude each other"),
        (["--url", "http://127.0.0.1:1", "--model", "m", "--receipts", "{tmp}/r"], "name its --control"),
        (["--url", "127.0.0.1:1", "--model", "m"], "'--url': '127.0.0.1:1' is not a URL such as"),
        (["--url", "http://127.0.0.1:99999"], "'--url': 'http://127.0.0.1:99999' is not a URL such as"),
        (["--url", "http://[::1"], "'--url': 'http://[::1' is not a URL such as"),
        (["--url", ""], "'--url': '' is not a URL such as"),
        (["--url", "http://127.0.0.1:1", "--control", "a:2"], "'--control': 'a:2' is not a URL such as"),
        (["--url", "http://127.0.0.1:1", "--control", "http://127.0.0.1:1"], "/fleet (--control) did not answer"),
        (["--json", "{tmp}/one", "--html", "{tmp}/./one"], "--json and --html are the same file"),
        (["--jsonl", "/proc/no/such"], "cannot write /proc/no/such (--jsonl)"),
        (["--url", "http://127.0.0.1:1", "--model", "m", "--event", "1:kill:r1"], "no process that was started here"),
        (["--event", "1:explode"], "is not an event; the forms are"),
        (["--event", "x"], "is not an event; the forms are"),
        (["--header", "x"], "is not NAME: VALUE"),
        (["--slow", "r9:2"], "'r9' is none of r0 to r3"),
        (["--slow", "r1"], "is not NAME:FACTOR"),
        (["--slow", "r1:-2"], "is a number above 0"),
        (["--arrivals", "often"], "--arrivals"),
        (["--arrivals", "closed:999999999"], "--sessions: 3999999996 are too many"),
        (["--slo-ttft", "nan"], "no finite number"),
        (["--drain", "inf"], "no finite number"),
        (["--url", "http://127.0.0.1:1", "--model", "m", "--session-header", "a b"], "'a b': '' is not a header"),
        (["--workload", "trace"], "give --trace FILE"),
        (["--token-scale", "2"], "give --trace FILE"),
        (["--set", "nonsense=1"], "there is no such parameter"),
        (["--set", "nonsense"], "write name=value"),
        (["--kv-tokens", "100"], "the longest request has"),
        (["--max-model-len", "100"], "the longest request has"),
        (["--command", "router"], "does not say where to listen"),
        (["--command", "no-such-router {port}"], "no program 'no-such-router'"),
        (["--json", "{tmp}"], "is a directory"),
        (["--json", "/proc/no/such"], "cannot write /proc/no/such"),
        (["--history", "real", "--form", "tokens"], "take the planned history only"),
    ],
)
def test_what_cannot_be_run_is_refused_by_the_name_of_its_flag(
    tmp_path: Path, arguments: list[str], expected: str
) -> None:
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    threads = set(threading.enumerate())
    done = CliRunner().invoke(run, ["--duration", "1", *given])
    assert done.exit_code != 0
    assert expected in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert set(threading.enumerate()) <= threads  # none is left behind; one of a test before may just have ended


def test_the_parameters_of_every_workload_are_described() -> None:
    done = CliRunner().invoke(run, ["--describe"])
    assert done.exit_code == 0
    for name in ("trace", "shared-prefix", "chat", "rag", "agents", "universal", "token_scale"):
        assert name in done.output
