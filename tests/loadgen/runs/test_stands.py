"""Stands of real processes: what they bring up, what events do to them, and what is left of them: nothing."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from aiohttp import web

import loadgen
from loadgen.fleet import FleetParameters
from loadgen.plans.plan import Piece, Plan, Session, Turn
from loadgen.plans.prompts import Prompts
from loadgen.processes import ChildFailed
from loadgen.records import Record
from loadgen.runs.events import parse_event
from loadgen.runs.once import RunResult, run_once
from loadgen.runs.probe import StandFailed
from loadgen.runs.runner import Runner
from loadgen.runs.stands import Stand, command_stand, policy_stand, url_stand
from tests.loadgen.runs.servers import answer_well, plan, serving, serving_app, session

TWO = FleetParameters(replicas=2, kv_tokens=8192, speedup=20)
ROUTER = f"{sys.executable} -P -m router.main serve --listen 127.0.0.1:{{port}} --control 127.0.0.1:{{free_port}}"


@pytest.fixture(autouse=True)
def found_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stand starts finds our packages although they may not be installed."""
    root = str(Path(loadgen.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]))


def readers(duration_s: float, per_s: int = 20) -> Plan:
    """Every request asks about one of three documents, so that there are prefixes to be found."""
    sessions = [
        Session(index / per_s, (Turn((Piece(index % 3, 320), Piece(100 + index, 20)), 4),))
        for index in range(int(duration_s * per_s))
    ]
    return Plan("test", 1, {}, duration_s, tuple(sessions))


async def asked(stand: Stand, what: Plan, events: Sequence[str] = ()) -> RunResult:
    runner = Runner(stand.target, what, Prompts(what, "text", "planned"), drain_s=20)
    async with asyncio.timeout(60):
        return await run_once(runner, stand, [parse_event(event) for event in events])


async def test_a_policys_stand_answers_and_its_receipts_tell_what_the_router_believed() -> None:
    async with policy_stand("kv", TWO, seed=1) as stand:
        assert (stand.target.name, stand.target.model, stand.target.replicas) == ("kv", "simulated", 2)
        assert stand.target.capacity_tokens == 8192
        result = await asked(stand, readers(1.5))
        router = stand.process("router")
        assert router is not None
        broken = await asked(stand, readers(30.0), [f"0.5:sh:kill -9 {router.process.pid}"])
        processes = [stand.process(name) for name in ("router", "r0", "r1")]
    assert (len(result.records), result.interrupted, result.receipts_failure) == (30, None, "")
    assert not any(record.error for record in result.records)
    assert {record.replica for record in result.records} == {"r0", "r1"}
    by_id = {receipt.request_id: receipt for receipt in result.receipts}
    assert len(by_id) == 30
    for record in result.records:
        receipt = by_id[record.request_id]
        assert (receipt.chosen, receipt.outcome) == (record.replica, "answered")
        assert receipt.prompt_tokens == record.prompt_tokens == record.planned_prompt_tokens == 340
        assert record.predicted_tokens == receipt.overlap_tokens[receipt.candidates.index(receipt.chosen)]
    assert sum(record.predicted_tokens or 0 for record in result.records) > 0
    assert result.work.computed.keys() == {"r0", "r1"}
    # A process that died by itself ends the run, and what there was is kept.
    assert broken.interrupted is not None
    assert "router ended with exit code -9" in broken.interrupted
    assert any(not record.error for record in broken.records)
    assert "/receipts" in broken.receipts_failure
    assert all(process is not None and process.process.poll() is not None for process in processes)


async def test_a_fleet_loses_gains_slows_and_forgets_while_it_is_asked() -> None:
    events = ["0.5:kill:r1", "0.6:add", "1:slow:r0:3", "1.2:flush:r0", "1.4:stop:r0", "1.8:cont:r0"]

    def heard(record: Record) -> None:
        if record.replica == "r2" and runner.now() > 2.5:
            runner.stop("the new one has answered")

    async with policy_stand("round_robin", TWO) as stand:
        what = readers(40.0)
        runner = Runner(stand.target, what, Prompts(what, "text", "planned"), on_record=heard)
        async with asyncio.timeout(60):
            result = await run_once(runner, stand, list(map(parse_event, events)))
    assert result.interrupted == "the new one has answered"
    assert [event.what for event in sorted(result.events, key=lambda event: event.at_s)] == [
        *("kill r1", "add r2", "slow r0 x3", "flush r0", "stop r0", "cont r0"),
    ]
    assert [event.error for event in result.events] == [""] * 6
    assert result.work.computed == {}  # r1 took its counters with it
    assert "r1 did not tell its counters" in result.work.unknown
    assert {record.replica for record in result.records if record.due < 0.4} <= {"r0", "r1"}


async def test_somebody_elses_router_is_put_before_replicas_that_join_nobody() -> None:
    unequal = FleetParameters(2, 8192, 20, slow={"r1": 40})
    async with command_stand("theirs", ROUTER + " --policy round_robin {replicas:--replica}", unequal) as stand:
        assert (stand.target.name, stand.target.control) == ("theirs", None)
        result = await asked(stand, readers(1.0, 10), ["0.2:flush:r0"])
        with pytest.raises(ValueError, match="a router of our own"):
            await asked(stand, readers(1.0), ["0.2:add"])
    assert [record.error for record in result.records] == [""] * 10
    assert [event.error for event in result.events] == [""]
    took: dict[str, list[float]] = {}
    for record in result.records:
        took.setdefault(record.replica, []).append(record.end - record.sent)
    assert {name: work.requests for name, work in result.work.computed.items()} == {"r0": 5, "r1": 5}
    assert sum(work.prompt_tokens for work in result.work.computed.values()) == sum(
        record.prompt_tokens for record in result.records
    )
    assert sum(work.cached_tokens for work in result.work.computed.values()) == sum(
        record.cached_tokens for record in result.records
    )
    quick, slow = sorted(map(min, took.values()))  # the replicas' names are the router's own
    assert slow > 2 * quick


async def test_a_command_that_dies_is_explained_by_the_end_of_its_log() -> None:
    with pytest.raises(ChildFailed, match=r"router ended with exit code 2(.|\n)*No such option"):
        async with command_stand("theirs", ROUTER + " --no-such-option", FleetParameters(replicas=1)):
            raise AssertionError("it must not be taken for ready")


async def test_the_one_model_of_a_running_server_is_found_out() -> None:
    async def models(request: web.Request) -> web.Response:
        return web.json_response(
            {"data": [{"id": "one"}, {"id": "two"}] if "many" in request.headers else [{"id": "m"}]}
        )

    app = web.Application()
    app.router.add_get("/v1/models", models)
    async with serving_app(app) as url:
        async with url_stand(f"{url}/v1/") as stand:
            assert (stand.target.model, stand.target.urls, stand.target.control) == ("m", (url,), None)
        with pytest.raises(StandFailed, match="names one, two; choose one with --model"):
            async with url_stand(url, headers={"many": "1"}):
                pass
        with pytest.raises(StandFailed, match="HTTP 404"):
            async with url_stand(url, control=url):
                pass


async def test_a_running_server_is_asked_for_the_model_it_was_told() -> None:
    async with serving(answer_well) as url, url_stand(url, model="given") as stand:
        result = await asked(stand, plan(session(), session()))
    assert [record.error for record in result.records] == ["", ""]


async def test_a_server_that_is_not_there_is_said_at_once() -> None:
    with pytest.raises(StandFailed, match="did not answer"):
        async with url_stand("http://127.0.0.1:1"):
            pass
