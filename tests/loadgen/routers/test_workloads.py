"""What is asked of the routers: the demo's readers, and a trace as it was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from aiohttp import web

from loadgen.fleet import FleetParameters
from loadgen.routers.workloads import demo_readers, stretch_of_trace
from loadgen.runs.runner import Runner
from loadgen.runs.target import Target
from loadgen.traces import read_trace
from tests.loadgen.runs.servers import answer_well, serving

EXCERPT = Path(__file__).parents[1] / "excerpt.jsonl"
SIZE = FleetParameters(replicas=2, kv_tokens=20_000, speedup=5.0)


def test_each_round_has_readers_of_its_own_seed() -> None:
    workload = demo_readers([3, 4], 10.0)
    assert [plan.seed for plan in workload.plans] == [3, 4]
    assert all(plan.duration_s == 10.0 for plan in workload.plans)
    assert workload.plans[0].sessions != workload.plans[1].sessions


def test_a_trace_is_compressed_in_time_and_its_answers_are_cut() -> None:
    workload = stretch_of_trace(EXCERPT, 1.0, SIZE, 8, [1])
    (plan,) = workload.plans
    assert [session.start_s for session in plan.sessions] == [0, 0.5, 1, 2, 2, 3, 4, 5]
    turns = [session.turns[0] for session in plan.sessions]
    assert [turn.output_tokens for turn in turns] == [3, 1, 8, 5, 2, 4, 4, 4]  # every answer has a token
    assert [sum(piece.tokens for piece in turn.pieces) for turn in turns] == [
        request.prompt_tokens for request in read_trace(EXCERPT)
    ]
    assert workload.fleet.max_model_len == 1540
    assert workload.facts["distinct_blocks"] == 7


def test_only_the_trace_s_first_minutes_are_asked() -> None:
    workload = stretch_of_trace(EXCERPT, 10 / 60, SIZE, 8, [1])
    assert len(workload.plans[0].sessions) == workload.facts["requests"] == 3


async def test_a_trace_is_asked_as_completions_of_token_ids_none_of_them_special() -> None:
    bodies: list[tuple[str, dict[str, Any]]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append((request.path, await request.json()))
        return await answer_well(request)

    workload = stretch_of_trace(EXCERPT, 1.0, msgspec.structs.replace(SIZE, speedup=100.0), 8, [1])
    (plan,) = workload.plans
    async with serving(handler) as url:
        records = await Runner(Target("t", (url,), "m"), plan, workload.prompts(plan)).run()
    assert [record.error for record in records] == [""] * 8
    assert {path for path, _ in bodies} == {"/v1/completions"}
    lengths = sorted((len(body["prompt"]), body["max_tokens"]) for _, body in bodies)
    asked = [session.turns[0] for session in plan.sessions]
    assert lengths == sorted((sum(piece.tokens for piece in turn.pieces), turn.output_tokens) for turn in asked)
    special = {0, 1, 2}  # <|endoftext|>, <|im_start|>, <|im_end|>
    assert not special & {token for _, body in bodies for token in body["prompt"]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "has no requests"),
        ("oops\n", "line 1"),
        ('{"timestamp": 0, "input_length": 30000, "output_length": 1, "hash_ids": [1]}\n', "makes 59 blocks"),
    ],
)
def test_what_is_no_trace_is_refused_by_its_flag(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(content)
    with pytest.raises(click.BadParameter, match=complaint) as raised:
        stretch_of_trace(file, 1.0, SIZE, 8, [1])
    assert raised.value.param_hint == "--trace"


def test_a_replica_has_room_for_the_longest_request_or_the_flag_is_named() -> None:
    assert stretch_of_trace(EXCERPT, 1.0, FleetParameters(kv_tokens=1540), 8, [1]).fleet.kv_tokens == 1540
    with pytest.raises(click.BadParameter, match="the longest request has 1540 tokens") as raised:
        stretch_of_trace(EXCERPT, 1.0, FleetParameters(kv_tokens=1539), 8, [1])
    assert raised.value.param_hint == "--kv-tokens"
