"""The client against a real server on a real socket: what it sends, what it records, and how it ends."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from loadgen.answer import Answer, EventReader
from loadgen.client import OpenLoopClient
from loadgen.processes import free_ports
from loadgen.records import Record
from loadgen.workloads import Document, RagParameters, Session, Turn, Workload

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def schedule(*sessions: Session, duration_s: float = 5.0) -> Workload:
    return Workload(1, RagParameters(duration_s=duration_s), "Be brief.", (Document("The text.", 3),), sessions)


def session(*questions: str, start_s: float = 0.0, think_s: float = 0.0) -> Session:
    return Session(start_s, 0, tuple(Turn(question, think_s, 7) for question in questions))


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def begin(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "x-radixgate-replica": "r1"})
    await response.prepare(request)
    return response


def event(payload: object) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def text(content: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]})


USAGE = {"prompt_tokens": 40, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 32}}


async def answer_well(request: web.Request) -> web.StreamResponse:
    response = await begin(request)
    await response.write(event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}))
    for part in ("one ", "two ", "three"):
        await response.write(text(part))
    await response.write(event({"choices": [], "usage": USAGE}) + b"data: [DONE]\n\n")
    return response


async def run(url: str, workload: Workload, drain_s: float = 8.0) -> list[Record]:
    return await OpenLoopClient(url, "simulated", workload, drain_s=drain_s).run()


async def test_a_conversation_is_asked_turn_by_turn_with_the_answers_received() -> None:
    bodies = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return await answer_well(request)

    async with serving(handler) as url:
        records = await run(url, schedule(session("First?", "Second?", "Third?")))
    assert [record.turn for record in records] == [0, 1, 2]
    for record in records:
        assert (record.error, record.status, record.replica) == ("", 200, "r1")
        assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (40, 32, 3)
        assert len(record.token_times) == 3
        assert 0 <= record.due <= record.sent <= record.token_times[0] <= record.token_times[-1] <= record.end
    assert [message["content"] for message in bodies[2]["messages"][2:]] == [
        "one two three",
        "Second?",
        "one two three",
        "Third?",
    ]
    assert bodies[0]["stream"] is True
    assert bodies[0]["stream_options"] == {"include_usage": True}
    assert (bodies[0]["model"], bodies[0]["max_tokens"]) == ("simulated", 7)


async def test_sessions_start_on_time_however_slow_the_server_is() -> None:
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
        records = await run(url, schedule(*(session("Why?", start_s=index / 200) for index in range(20))))
    assert [record.error for record in records] == [""] * 20


async def test_the_next_turn_is_due_when_the_reader_has_thought() -> None:
    async with serving(answer_well) as url:
        first, second = await run(url, schedule(session("First?", "Second?", start_s=0.02, think_s=0.05)))
    assert first.due == pytest.approx(0.07)  # the first turn's own pause counts from the session's start
    assert second.due >= first.end + 0.05
    assert second.sent >= second.due


async def test_nothing_is_sent_after_the_schedule_has_ended() -> None:
    async with serving(answer_well) as url:
        records = await run(url, schedule(session("First?", "Second?", think_s=0.3), duration_s=0.5))
    assert [record.turn for record in records] == [0]


async def test_an_error_event_fails_the_request_and_ends_its_session() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await begin(request)
        await response.write(text("half"))
        await response.write(event({"error": {"message": "The replica died.", "code": 502}}))
        await response.write(b"data: [DONE]\n\n")
        return response

    async with serving(handler) as url:
        records = await run(url, schedule(session("First?", "Second?")))
    assert len(records) == 1
    assert "The replica died." in records[0].error
    assert len(records[0].token_times) == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [('{"error": {"message": "No replica is up."}}', "HTTP 503: No replica is up."), ("oops", "HTTP 503: oops")],
)
async def test_an_http_error_is_recorded_with_its_message(body: str, expected: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503, text=body)

    async with serving(handler) as url:
        (record,) = await run(url, schedule(session("First?", "Second?")))
    assert (record.status, record.error) == (503, expected)
    assert record.ttft is None


async def test_a_refused_connection_is_an_error_not_an_exception() -> None:
    (port,) = free_ports(1)
    (record,) = await run(f"http://127.0.0.1:{port}", schedule(session("First?", "Second?")))
    assert record.status == 0
    assert "Connect" in record.error


async def test_a_server_that_dies_mid_stream_is_an_error() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await begin(request)
        await response.write(text("half"))
        assert request.transport is not None
        request.transport.abort()
        return response

    async with serving(handler) as url:
        (record,) = await run(url, schedule(session("First?", "Second?")))
    assert record.error
    assert record.status == 200


async def test_a_stream_that_ends_early_without_a_word_is_an_error() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await begin(request)
        await response.write(text("half"))
        return response

    async with serving(handler) as url:
        (record,) = await run(url, schedule(session("First?")))
    assert record.error == "the stream ended without [DONE]"


async def test_garbage_in_the_stream_is_an_error() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await begin(request)
        await response.write(b"data: {not json\n\ndata: [DONE]\n\n")
        return response

    async with serving(handler) as url:
        (record,) = await run(url, schedule(session("First?")))
    assert "no completion chunk" in record.error


async def never_answer(request: web.Request) -> web.StreamResponse:
    response = await begin(request)
    await response.write(text("half"))
    await asyncio.Event().wait()
    return response


async def test_a_run_is_bounded_and_records_what_it_cut_off() -> None:
    async with serving(never_answer) as url:
        (record,) = await run(url, schedule(session("First?", "Second?"), duration_s=0.1), drain_s=0.2)
    assert "not finished" in record.error
    assert len(record.token_times) == 1
    assert record.end >= 0.3


async def test_cancelling_a_run_ends_all_its_tasks() -> None:
    reached = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        reached.set()
        return await never_answer(request)

    async with serving(handler) as url:
        client = OpenLoopClient(url, "simulated", schedule(session("First?"), session("Later?", start_s=4)))
        task = asyncio.create_task(client.run())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.in_flight == 0
        assert [record.error != "" for record in client.records] == [True]
        leftover = [other for other in asyncio.all_tasks() if "_converse" in repr(other)]
        assert leftover == []


async def test_every_finished_request_is_announced() -> None:
    heard: dict[int, list[int]] = defaultdict(list)

    def on_record(record: Record) -> None:
        heard[record.session].append(record.turn)

    async with serving(answer_well) as url:
        workload = schedule(session("a?", "b?"), session("c?"))
        await OpenLoopClient(url, "simulated", workload, on_record=on_record).run()
    assert heard == {0: [0, 1], 1: [0]}


def test_events_are_read_however_the_bytes_are_cut() -> None:
    stream = b"data: a\r\n\r\n: a comment\n\ndata:b\n\nevent: x\ndata: [DONE]\n\n"
    for size in range(1, len(stream) + 1):
        reader = EventReader()
        seen = [data for at in range(0, len(stream), size) for data in reader.feed(stream[at : at + size])]
        assert seen == [b"a", b"b", b"[DONE]"]


def test_the_first_failure_is_the_one_that_is_kept() -> None:
    answer = Answer()
    answer.take(b'{"error": "first"}', 1.0)
    answer.take(b"{", 2.0)
    assert answer.error == "the stream ended with an error event: first"
