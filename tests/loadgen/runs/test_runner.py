"""The runner against real servers: what is sent and when, what is recorded, and how a run ends."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web

from loadgen.plans.plan import Piece, Plan, Session, Turn
from loadgen.plans.prompts import Prompts
from loadgen.processes import free_ports
from loadgen.records import Record
from loadgen.runs.runner import Runner
from loadgen.runs.target import Target
from tests.loadgen.runs.servers import answer_well, begin, event, plan, run, runner, serving, session, text, turn


async def never_answer(request: web.Request) -> web.StreamResponse:
    response = await begin(request)
    await response.write(text("half"))
    await asyncio.Event().wait()
    return response


async def test_a_session_is_asked_turn_by_turn_and_all_of_it_is_recorded() -> None:
    bodies, headers = [], []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        headers.append(request.headers)
        return await answer_well(request)

    asked = plan(session(turn(7), turn(5, think_s=0.01), group=3), growing=True)
    async with serving(handler) as url:
        records = await run(url, asked, headers={"authorization": "Bearer x"})
    assert [(record.session, record.turn, record.error, record.status) for record in records] == [
        (0, 0, "", 200),
        (0, 1, "", 200),
    ]
    for record in records:
        assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (40, 32, 3)
        assert (record.replica, record.group, len(record.token_times)) == ("r1", 3, 3)
        assert 0 <= record.due <= record.sent + 1e-3
        assert record.sent <= record.token_times[0] <= record.token_times[-1] <= record.end
    assert [record.planned_prompt_tokens for record in records] == [20, 20 + 7 + 20]
    assert [record.planned_output_tokens for record in records] == [7, 5]
    assert bodies[1]["prompt"].startswith(bodies[0]["prompt"])
    assert [(body["model"], body["stream"], body["max_tokens"]) for body in bodies] == [("m", True, 7), ("m", True, 5)]
    assert bodies[0]["stream_options"] == {"include_usage": True}
    assert {header["authorization"] for header in headers} == {"Bearer x"}
    assert [header["x-request-id"] for header in headers] == [record.request_id for record in records]


async def test_the_id_that_the_response_names_is_the_one_recorded() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await begin(request, **{"X-Request-Id": "its-own"})
        await response.write(text("a") + b"data: [DONE]\n\n")
        return response

    async with serving(handler) as url:
        (record,) = await run(url, plan(session()))
    assert record.request_id == "its-own"


async def test_whether_the_server_says_how_much_was_cached_is_recorded() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        details = {} if (await request.json())["max_tokens"] == 1 else {"prompt_tokens_details": {"cached_tokens": 0}}
        response = await begin(request)
        await response.write(text("a") + event({"choices": [], "usage": {"prompt_tokens": 40, **details}}))
        await response.write(b"data: [DONE]\n\n")
        return response

    async with serving(handler) as url:
        records = await run(url, plan(session(turn(1), turn(2))))
    assert [(record.cached_tokens, record.reports_cached) for record in records] == [(0, False), (0, True)]


async def test_real_answers_become_history() -> None:
    bodies = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return await answer_well(request)

    asked = plan(session(turn(), turn()), growing=True)
    async with serving(handler) as url:
        await Runner(Target("t", (url,), "m"), asked, Prompts(asked, "chat", "real")).run()
    assert [message["content"] for message in bodies[1]["messages"] if message["role"] == "assistant"] == [
        "one two three"
    ]


async def test_sessions_begin_on_time_however_slow_the_server_is() -> None:
    """Open loop: nobody is answered before everybody has asked."""
    asked = 0
    everybody = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        if asked == 20:
            everybody.set()
        await everybody.wait()
        return await answer_well(request)

    async with serving(handler) as url:
        records = await run(url, plan(*(session(start_s=index / 200) for index in range(20))))
    assert [record.error for record in records] == [""] * 20


async def test_a_turn_is_due_its_thinking_time_after_the_answer_before() -> None:
    async with serving(answer_well) as url:
        first, second, third = await run(url, plan(session(turn(), turn(think_s=0.15), turn(), start_s=0.02)))
    assert first.due == 0.02
    assert second.due == pytest.approx(first.end + 0.15)
    assert third.due == pytest.approx(second.end)
    assert second.lag > -1e-3


async def test_a_turn_with_a_time_of_its_own_waits_for_nobody() -> None:
    second_came = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        if (await request.json())["max_tokens"] == 1:
            await second_came.wait()
        else:
            second_came.set()
        return await answer_well(request)

    async with serving(handler) as url:
        records = await run(url, plan(session(turn(1), turn(2, due_s=0.1))))
    assert sorted((record.turn, record.due, record.error) for record in records) == [(0, 0.0, ""), (1, 0.1, "")]


async def test_a_failed_turn_ends_its_session_but_not_the_others() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if (await request.json())["max_tokens"] == 1:
            return web.Response(status=500, text='{"error": {"message": "It broke."}}')
        return await answer_well(request)

    async with serving(handler) as url:
        records = await run(url, plan(session(turn(1), turn(2)), session(turn(3), turn(4))))
    assert Counter((record.session, record.error) for record in records) == {
        (0, "HTTP 500: It broke."): 1,
        (1, ""): 2,
    }


async def test_an_error_event_fails_the_request_and_ends_its_session() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await begin(request)
        await response.write(text("half") + event({"error": {"message": "The replica died.", "code": 502}}))
        await response.write(b"data: [DONE]\n\n")
        return response

    async with serving(handler) as url:
        (record,) = await run(url, plan(session(turn(), turn())))
    assert "The replica died." in record.error
    assert len(record.token_times) == 1


async def test_a_turn_with_a_time_of_its_own_is_asked_after_a_failure() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=500, text="no")

    async with serving(handler) as url:
        records = await run(url, plan(session(turn(), turn(due_s=0.05), turn())))
    assert [record.turn for record in records] == [0, 1]


async def test_nothing_is_due_after_the_plans_duration() -> None:
    async with serving(answer_well) as url:
        records = await run(url, plan(session(turn(), turn(think_s=9)), session(start_s=0.6), duration_s=0.5))
    assert [(record.session, record.turn) for record in records] == [(0, 0)]


async def test_a_plan_without_sessions_is_over_at_once() -> None:
    (port,) = free_ports(1)
    assert await run(f"http://127.0.0.1:{port}", plan()) == []
    assert await run(f"http://127.0.0.1:{port}", plan(concurrency=3)) == []


async def test_a_server_that_answers_to_nobody_cannot_hold_the_run() -> None:
    async with serving(never_answer) as url:
        records = await run(url, plan(session(), session(turn(), turn()), duration_s=0.1), drain_s=0.2)
    assert len(records) == 2
    assert all("cut off: not finished 0.2 s after" in record.error for record in records)
    assert all(len(record.token_times) == 1 and record.end >= 0.3 for record in records)


async def test_a_refused_connection_is_an_error_and_no_lag() -> None:
    (port,) = free_ports(1)
    (record,) = await run(f"http://127.0.0.1:{port}", plan(session(turn(), turn(), start_s=0.2)))
    assert (record.status, record.turn) == (0, 0)
    assert "cannot connect to 127.0.0.1" in record.error


async def test_a_host_whose_name_can_be_none_is_an_error() -> None:
    (record,) = await run("http://a..b:80", plan(session()))
    assert "cannot connect to a..b:80" in record.error


async def test_requests_to_a_server_that_takes_no_more_connections_are_recorded_as_sent_in_time() -> None:
    """Its backlog is full: the connection is not there when the request is due, and that is the server's doing."""
    with socket.socket() as full, ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(8):
            caller = waiting.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        asked = plan(*(session(start_s=0.2) for _ in range(8)), duration_s=0.3)
        records = await run(f"http://127.0.0.1:{full.getsockname()[1]}", asked, drain_s=0.3)
    assert len(records) == 8
    assert all("cut off" in record.error and record.sent < record.end for record in records)


@pytest.mark.parametrize("places", [1, 3])
async def test_a_closed_loop_never_has_more_sessions_than_its_places(places: int) -> None:
    under_way = most = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        response = await answer_well(request)
        under_way -= 1
        return response

    asked = plan(*(session(turn(), turn(), start_s=index * 9) for index in range(12)), concurrency=places)
    async with serving(handler) as url:
        records = await run(url, asked)
    assert len(records) == 24
    assert not any(record.error for record in records)
    assert most <= places
    alive = sorted((record.sent, record.end) for record in records)
    for (_, ended), (began, _) in pairwise(alive) if places == 1 else ():
        assert began >= ended


async def test_a_closed_loop_begins_nothing_after_the_duration() -> None:
    async with serving(answer_well) as url:
        records = await run(url, plan(*(session() for _ in range(5000)), concurrency=1, duration_s=0.2))
    assert 0 < len(records) < 5000
    assert all(record.due < 0.2 + 1e-3 for record in records)


async def test_a_stall_counts_in_full_for_every_request_that_was_due_in_it() -> None:
    """Coordinated omission: nobody is answered before the last has come, and the wait of all is counted."""
    asked = 0
    over = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        if asked == 11:
            over.set()
        await over.wait()
        return await answer_well(request)

    async with serving(handler) as url:
        records = await run(url, plan(*(session(start_s=index / 50) for index in range(11))))
    assert len(records) == 11
    for record in records:
        assert record.ttft is not None
        assert record.ttft >= 0.2 - record.due - 2e-3


async def test_the_clients_own_lateness_counts_from_due_and_is_told() -> None:
    async def block_the_loop() -> None:
        await asyncio.sleep(0.1)
        end = asyncio.get_running_loop().time() + 0.3
        while asyncio.get_running_loop().time() < end:
            pass

    async with serving(answer_well) as url:
        blocking = asyncio.create_task(block_the_loop())
        (record,) = await run(url, plan(session(start_s=0.2)))
        await blocking
    assert record.lag >= 0.15
    assert record.ttft is not None
    assert record.ttft_from_sending is not None
    assert record.ttft == pytest.approx(record.ttft_from_sending + record.lag)


async def test_many_requests_due_at_once_are_ready_before_they_are_due() -> None:
    """Their bodies are made one by one before, while others are sent on time."""
    made = 0
    made_at_first = -1

    class Slow(Prompts):
        def body(self, session: Session, turn: int, answers: Sequence[str]) -> dict[str, Any]:
            nonlocal made
            made += session.start_s == 1.4
            end = time.monotonic() + 0.002
            while time.monotonic() < end:
                pass
            return super().body(session, turn, answers)

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal made_at_first
        if (await request.json())["max_tokens"] == 60 and made_at_first < 0:
            made_at_first = made
        return await answer_well(request)

    clump = [session(turn(60), start_s=1.4) for _ in range(40)]
    asked = plan(*(session(start_s=index / 10) for index in range(14)), *clump)
    async with serving(handler) as url:
        records = await Runner(Target("t", (url,), "m"), asked, Slow(asked, "text", "planned")).run()
    assert not any(record.error for record in records)
    assert made_at_first == 40


async def test_stopping_a_run_cuts_off_what_is_under_way_and_keeps_what_there_was() -> None:
    reached = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        if (await request.json())["max_tokens"] == 1:
            return await answer_well(request)
        reached.set()
        return await never_answer(request)

    async with serving(handler) as url:
        running = runner(url, plan(session(turn(1)), session(turn(2), start_s=0.1), session(start_s=4)))
        task = asyncio.create_task(running.run())
        await reached.wait()
        running.stop("enough")
        records = await task
    assert [(record.session, record.error) for record in records] == [(0, ""), (1, "cut off: enough")]
    assert (running.interrupted, running.in_flight) == ("enough", 0)


async def test_a_run_stopped_before_it_began_sends_nothing() -> None:
    async with serving(answer_well) as url:
        running = runner(url, plan(session()))
        running.stop("no")
        assert await running.run() == []


async def test_cancelling_a_run_ends_all_its_tasks() -> None:
    reached = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        reached.set()
        return await never_answer(request)

    async with serving(handler) as url:
        running = runner(url, plan(session(), session(turn(), turn(due_s=4)), session(start_s=4)))
        task = asyncio.create_task(running.run())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert running.in_flight == 0
        assert all(record.error for record in running.records)
        leftover = [other for other in asyncio.all_tasks() if "_Conversation" in repr(other)]
        assert leftover == []


async def test_requests_go_to_the_targets_urls_in_turn() -> None:
    heard: Counter[str] = Counter()

    async def handler(request: web.Request) -> web.StreamResponse:
        heard[request.host] += 1
        return await answer_well(request)

    async with serving(handler) as one, serving(handler) as other:
        await runner((one, other), plan(*(session(start_s=index / 100) for index in range(6)))).run()
    assert sorted(heard.values()) == [3, 3]


async def test_the_urls_are_taken_in_turn_even_within_a_conversation() -> None:
    heard: Counter[tuple[str, int]] = Counter()

    async def handler(request: web.Request) -> web.StreamResponse:
        heard[request.host, (await request.json())["max_tokens"]] += 1
        return await answer_well(request)

    async with serving(handler) as one, serving(handler) as other:
        await runner((one, other), plan(session(*(turn(number + 1) for number in range(4))), growing=True)).run()
        hosts = [url.removeprefix("http://") for url in (one, other)]
    assert heard == {(hosts[0], 1): 1, (hosts[1], 2): 1, (hosts[0], 3): 1, (hosts[1], 4): 1}


async def test_a_session_header_is_the_same_for_a_session_and_for_no_other() -> None:
    heard = []

    async def handler(request: web.Request) -> web.StreamResponse:
        heard.append(request.headers["x-session-id"])
        return await answer_well(request)

    async with serving(handler) as url:
        await run(url, plan(session(turn(), turn()), session(start_s=0.1)), session_header="x-session-id")
    assert len(heard) == 3
    assert sorted(Counter(heard).values()) == [1, 2]


async def test_every_finished_request_is_announced() -> None:
    heard: list[Record] = []
    async with serving(answer_well) as url:
        records = await run(url, plan(session(turn(), turn()), session()), on_record=heard.append)
    assert heard == records


def test_a_bad_url_or_header_is_refused_before_anything_is_sent() -> None:
    asked: Plan = plan(session(Turn((Piece(0, 1),), 1)))
    with pytest.raises(ValueError, match="not a URL such as"):
        runner("localhost:80", asked)
    with pytest.raises(ValueError, match="is not a header"):
        runner("http://localhost", asked, headers={"x": "a\r\nb: c"})
    with pytest.raises(ValueError, match="is not a header"):
        runner("http://localhost", asked, session_header="x session")
