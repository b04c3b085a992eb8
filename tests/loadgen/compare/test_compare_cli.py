"""`radixgate bench compare`: real servers, small schedules, the document, and a clean end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from loadgen.commands.bench import bench
from loadgen.compare.schema import Against, ComparisonReport, RunMetric
from loadgen.fleet import RADIXGATE, FleetParameters, start_replicas
from loadgen.processes import Children, free_ports

TIMEOUT_S = 60
TINY = ("--workload", "shared-prefix", "--set", "prefix_tokens=200", "--set", "output_tokens=2-4", "--no-ideals")
SHORT = (*TINY, "--arrivals", "constant:20", "--duration", "0.5", "--max-lag", "5")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A simulated replica, which is an OpenAI server like another."""
    with Children() as children:
        ((name, url),) = start_replicas(children, FleetParameters(replicas=1, speedup=16), ()).items()
        child = children.named(name)
        assert child is not None
        asyncio.run(children.until_ready(child, f"{url}/health", TIMEOUT_S))
        yield url


def compare(*arguments: str) -> Result:
    return CliRunner().invoke(bench, ["compare", *arguments])


def document(file: Path) -> ComparisonReport:
    return msgspec.json.decode(file.read_bytes(), type=ComparisonReport)


def test_two_policies_from_end_to_end(tmp_path: Path) -> None:
    json_file, html_file = tmp_path / "out" / "c.json", tmp_path / "c.html"
    fleet = ("--replicas", "2", "--speedup", "16", "--repetitions", "1")
    done = compare("kv", "least_load", *SHORT, *fleet, "--json", str(json_file), "--html", str(html_file))
    assert done.exit_code == 0, done.output
    found = document(json_file)
    assert (found.schema, found.baseline, found.repetitions_done, found.interrupted) == (1, "kv", 1, "")
    assert found.order == tuple(side.name for side in found.sides) == ("kv", "least_load")
    assert all(side.fresh and side.repetitions[0].report.figures.errors == 0 for side in found.sides)
    (against,) = found.against
    assert against.pairs == found.plan.requests > 5
    assert against.left_out.total == 0
    assert [metric.metric for metric in against.requests][:2] == ["ttft_s", "ttft_sent_s"]
    assert all(metric.mean_difference.method == "bootstrap" for metric in against.requests)
    kv = found.sides[0].repetitions[0].report.figures
    assert against.runs[0].baseline == kv.hit_rate
    assert kv.regret_mean_s is not None
    page = html_file.read_text()
    assert "least_load" in page
    assert "bootstrap over sessions" in page
    for text in ("kv: repetition 1: ", "ratio of medians", "Differences from kv", "Note: "):
        assert text in done.output


def balance(against: Against, figure: str) -> RunMetric:
    (found,) = (metric for metric in against.runs if metric.metric == figure)
    return found


def test_balance_is_by_the_replicas_own_counters_whoever_routes(server: str, tmp_path: Path) -> None:
    json_file, html_file = tmp_path / "c.json", tmp_path / "c.html"
    serve = f"{sys.executable} -P -m router.main serve --listen 127.0.0.1:{{port}} --control 127.0.0.1:{{free_port}}"
    theirs = f"theirs=!{serve} --policy round_robin {{replicas:--replica}}"
    fleet = ("--replicas", "2", "--speedup", "16", "--repetitions", "1")
    outputs = ("--json", str(json_file), "--html", str(html_file))
    done = compare("round_robin", theirs, f"there={server}", *SHORT, *fleet, *outputs)
    assert done.exit_code == 0, done.output
    found = document(json_file)
    ours, foreign, running = (side.repetitions[0].report for side in found.sides)
    assert ours.computed.keys() == foreign.computed.keys() == {"r0", "r1"}
    for report in (ours, foreign):
        assert sum(work.requests for work in report.computed.values()) == found.plan.requests
        assert sum(work.prompt_tokens for work in report.computed.values()) == report.figures.prompt_tokens
    against_theirs, against_there = found.against
    for figure in ("balance_tokens", "balance_requests"):
        known = balance(against_theirs, figure)
        assert (known.baseline, known.side) == (getattr(ours.figures, figure), getattr(foreign.figures, figure))
        assert known.difference.method == "none"  # one repetition says nothing of the next
        assert (balance(against_there, figure).side, balance(against_there, figure).difference.value) == (None, None)
    assert running.computed == {}
    assert "balance, requests" in done.output
    assert "no balance of there: replicas that were not started here may be asked by others too" in " ".join(
        done.output.split()
    )
    assert "no balance of there" in html_file.read_text()


def test_sides_take_turns_and_three_repetitions_give_students_intervals(server: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    done = compare(f"a={server}", f"b={server}/v1", *SHORT, "--json", str(file))
    assert done.exit_code == 0, done.output
    found = document(file)
    assert found.order == ("a", "b", "b", "a", "a", "b")
    assert [run.position for run in found.sides[0].repetitions] == [0, 1, 0]
    assert not any(side.fresh for side in found.sides)
    (against,) = found.against
    assert against.pairs == 3 * found.plan.requests
    ttft = against.requests[0].mean_difference
    assert (ttft.method, ttft.samples) == ("t", 3)
    assert {run.report.plan.seed for side in found.sides for run in side.repetitions} == {1}
    assert "has seen every prompt" in " ".join(done.output.split())


def test_each_repetition_may_have_a_schedule_of_its_own(server: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    seeds = ("--vary-seed", "--seed", "7", "--repetitions", "2")
    done = compare(f"a={server}", f"b={server}", *SHORT, *seeds, "--json", str(file))
    assert done.exit_code == 0, done.output
    for side in document(file).sides:
        assert [run.report.plan.seed for run in side.repetitions] == [7, 8]


def test_a_url_that_refuses_is_named_before_anything_runs(server: str) -> None:
    (port,) = free_ports(1)
    done = compare(f"a={server}", f"b=http://127.0.0.1:{port}", *SHORT)
    assert done.exit_code == 1
    assert f"http://127.0.0.1:{port}/v1/models did not answer" in " ".join(done.output.split())
    assert "repetition" not in done.output


def test_requests_that_fail_make_no_pairs_and_fail_the_command(server: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    file = tmp_path / "c.json"
    sides = (f"a={server}", f"b=http://127.0.0.1:{port}")
    done = compare(*sides, *SHORT, "--model", "simulated", "--repetitions", "1", "--json", str(file))
    assert done.exit_code == 1
    (against,) = document(file).against
    assert against.pairs == 0
    assert against.left_out.failed_on_side == document(file).plan.requests
    assert "cannot connect" in done.output
    assert "b #1 is invalid" in done.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("kv",), "two sides or more"),
        (("kv", "psychic"), "'psychic' is no side"),
        (("kv", "least_load", "--repetitions", "0"), "--repetitions"),
        (("kv", "least_load", "--arrivals", "sometimes"), "--arrivals"),
        (("kv", "least_load", "--kv-tokens", "160"), "--kv-tokens"),
        (("kv", "least_load", "--header", "x"), "NAME: VALUE"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[str, ...], complaint: str) -> None:
    done = compare(*arguments)
    assert done.exit_code == 2, done.output
    assert complaint in " ".join(done.output.split())


class Running:
    """A comparison without an end in a process of its own."""

    def __init__(self, server: str, file: Path, *more: str) -> None:
        arguments = ["compare", f"a={server}", f"b={server}", *TINY, "--max-lag", "5", "--json", str(file), *more]
        self.process = subprocess.Popen(
            [sys.executable, *RADIXGATE, "bench", *arguments, "--arrivals", "constant:20"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.output = ""

    def read_until(self, text: str) -> None:
        assert self.process.stdout is not None
        while text not in self.output:
            line = self.process.stdout.readline()
            assert line, self.output
            self.output += line

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=TIMEOUT_S)
        self.output += rest
        return self.process.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_reports_what_has_finished(server: str, tmp_path: Path, number: int) -> None:
    file = tmp_path / "c.json"
    running = Running(server, file, "--duration", "0.3", "--repetitions", "1000")
    running.read_until("a: repetition 2: ")
    assert running.end(number) == 128 + number, running.output
    found = document(file)
    assert found.repetitions_done >= 2
    assert found.against[0].pairs == found.repetitions_done * found.plan.requests
    assert signal.Signals(number).name in found.interrupted
    assert "Ended early, after" in running.output


def test_an_interruption_before_any_repetition_has_finished_says_so(server: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    running = Running(server, file, "--duration", "60")
    running.read_until("a: repetition 1 of 3 begins")
    assert running.end(signal.SIGINT) == 128 + signal.SIGINT, running.output
    assert "No repetition of all sides has finished" in running.output
    assert not file.exists()
