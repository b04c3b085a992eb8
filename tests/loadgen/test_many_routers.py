"""Experiments with several routers: how the client takes them in turn, what is compared, and a small run of the real
thing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from rich.console import Console

import loadgen
from loadgen.client import OpenLoopClient
from loadgen.fleet import FleetParameters
from loadgen.many_report import WorkloadRuns, hit_rate_lost, table
from loadgen.replay import Replay
from loadgen.report import PolicyReport, Slo, summarise
from loadgen.traces import BlockTokens, read_trace
from loadgen.workloads import Document, RagParameters, Session, Turn, Workload

ROOT = Path(loadgen.__file__).parents[1]
EXCERPT = Path(__file__).with_name("excerpt.jsonl")
TIMEOUT_S = 120

# What a fleet that forgets nothing finds cached of the excerpt, in whole blocks of 16 tokens.
EXCERPT_TOKENS = 8372
EXCERPT_CACHED = 512 + 1024 + 688 + 0 + 1392 + 512 + 1488


class Origin:
    """A server that answers every completion and chat with one token, and keeps their bodies."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.bodies.append((request.path, msgspec.json.decode(await request.read())))
        choice = {"index": 0, "text": "word", "delta": {"content": "word"}}
        if request.path == "/v1/completions":
            del choice["delta"]
        events = [{"choices": [choice]}, {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}]
        body = b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events)
        return web.Response(body=body + b"data: [DONE]\n\n", content_type="text/event-stream")


@asynccontextmanager
async def origins(count: int) -> AsyncIterator[list[Origin]]:
    runners, made = [], [Origin() for _ in range(count)]
    try:
        for origin in made:
            app = web.Application()
            app.router.add_post("/{path:.*}", origin.answer)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            origin.url = f"http://{host}:{port}"
        yield made
    finally:
        for runner in runners:
            await runner.cleanup()


async def test_requests_take_the_routers_in_turn_even_within_a_conversation() -> None:
    turns = tuple(Turn(f"{number}?", 0.0, 5) for number in range(6))
    workload = Workload(
        1, RagParameters(duration_s=5.0), "Be brief.", (Document("Text.", 2),), (Session(0.0, 0, turns),)
    )
    async with origins(3) as routers:
        url, *siblings = [router.url for router in routers]
        records = await OpenLoopClient(url, "m", workload, siblings=siblings).run()
    assert [record.error for record in records] == [""] * 6
    lengths = [[len(body["messages"]) for _, body in router.bodies] for router in routers]
    assert lengths == [[2, 8], [4, 10], [6, 12]]


async def test_a_trace_is_asked_as_completions_of_token_ids() -> None:
    requests = list(read_trace(EXCERPT))
    replay = Replay(requests, BlockTokens(range(7, 300)), speedup=100.0, max_output=8)
    async with origins(1) as (router,):
        records = await OpenLoopClient(router.url, "m", replay).run()
    assert [record.error for record in records] == [""] * len(requests)
    assert all(len(record.token_times) == 1 for record in records)
    assert {path for path, _ in router.bodies} == {"/v1/completions"}
    bodies = sorted(((body["prompt"], body["max_tokens"]) for _, body in router.bodies))
    asks = [replay.ask(session, []) for session in replay.sessions]
    assert bodies == sorted((ask["prompt"], ask["max_tokens"]) for ask in asks)


def run(hit_rate: float | None) -> PolicyReport:
    return msgspec.structs.replace(summarise([], Slo(), 1), hit_rate=hit_rate)


def runs(**settings: list[float | None]) -> dict[str, list[PolicyReport]]:
    return {name: [run(rate) for rate in rates] for name, rates in settings.items()}


def test_what_is_lost_is_the_difference_of_medians_in_points() -> None:
    found = runs(one=[0.5, 0.9, 0.6], shared=[0.59, 0.1, 0.7], private=[0.7, 0.7, 0.2])
    assert hit_rate_lost(found, "shared") == pytest.approx(1.0)
    assert hit_rate_lost(found, "private") == pytest.approx(-10.0)
    assert hit_rate_lost(found, "one") == 0


def test_nothing_is_compared_with_a_run_that_has_no_hit_rate() -> None:
    assert hit_rate_lost(runs(one=[0.5], shared=[None]), "shared") is None
    assert hit_rate_lost(runs(one=[0.5, None], shared=[0.5]), "shared") is None
    assert hit_rate_lost(runs(shared=[0.5]), "shared") is None


def test_the_table_has_medians_ranges_and_the_points_that_are_lost() -> None:
    result = WorkloadRuns("demo", "readers", {}, FleetParameters(), runs(one=[0.5, 0.9, 0.6], shared=[0.4, 0.6, 0.5]))
    console = Console(file=StringIO(), width=160)
    console.print(table([result], 3))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    for part in ("demo", "one router", "3 routers, one tree", "60.0% (50.0%–90.0%)", "50.0% (40.0%–60.0%)", "+10.0"):
        assert part in text


def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadgen.many_routers", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)


def test_two_routers_over_one_tree_find_what_one_router_finds(tmp_path: Path) -> None:
    figures = tmp_path / "new" / "figures.json"
    size = ["--replicas", "2", "--kv-tokens", "20000", "--speedup", "10", "--max-output", "4"]
    settings = ["--routers", "2", "--setting", "one", "--setting", "shared"]
    done = compare("--no-rag", "--trace", str(EXCERPT), *size, *settings, "--json", str(figures))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(figures.read_text())
    (workload,) = result["workloads"]
    (one,), (shared,) = workload["runs"]["one"], workload["runs"]["shared"]
    for report in (one, shared):
        assert (report["requests"], report["errors"], report["prompt_tokens"]) == (8, 0, EXCERPT_TOKENS)
    assert one["cached_tokens"] == EXCERPT_CACHED
    assert 0.8 * EXCERPT_CACHED <= shared["cached_tokens"] <= EXCERPT_CACHED
    assert workload["facts"]["distinct_blocks"] == 7
    assert result["machine"]["cores"]
    assert "trace, shared: " in done.stdout
    assert "2 routers, one tree" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--no-rag"], "give --trace FILE"),
        (["--trace", "none.jsonl"], "none.jsonl cannot be read"),
        (["--no-rag", "--trace", str(EXCERPT), "--kv-tokens", "1000"], "--kv-tokens"),
        (["--setting", "four"], "'four' is not one of"),
    ],
)
def test_what_cannot_be_run_is_explained_at_once(arguments: list[str], complaint: str) -> None:
    done = compare(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
