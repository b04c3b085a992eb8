"""The wire: answers however they are framed, connections that are reused, and those that break."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from loadgen.answer import Answer
from loadgen.runs.wire import STALE_S, Connection, Origin

Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
EVENTS = b'data: {"choices":[{"text":"a"}]}\n\ndata: [DONE]\n\n'
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nX-RadixGate-Replica: r7\r\n\r\n%s" % (len(EVENTS), EVENTS)


@asynccontextmanager
async def speaking(speak: Speak, clock: Callable[[], float] = time.monotonic) -> AsyncIterator[Origin]:
    """A server that says what it likes, byte by byte."""
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            await speak(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    origin = Origin(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "/v1/x", {}, clock)
    try:
        yield origin
    finally:
        await origin.close()
        for writer in writers:
            writer.close()
        server.close()
        await server.wait_closed()


async def request(reader: asyncio.StreamReader) -> bytes:
    """One request's head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


async def ask(origin: Origin, body: bytes = b"{}") -> Answer:
    answer = Answer()
    await origin.ask(origin.request(body, {"x-a": "b"}), answer)
    return answer


def always(said: bytes, *, close: bool = False) -> Speak:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request(reader)
            writer.write(said)
            await writer.drain()
            if close:
                return

    return speak


@pytest.mark.parametrize(
    "said",
    [
        WHOLE,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(EVENTS), EVENTS),
        b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE,
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + WHOLE,
    ],
)
async def test_an_answer_is_read_however_it_is_framed(said: bytes) -> None:
    async with speaking(always(said)) as origin:
        for _ in range(2):
            answer = await ask(origin)
            assert (answer.error, answer.status, answer.text, answer.done) == (None, 200, "a", True)
            assert len(answer.token_times) == 1


async def test_an_answer_that_ends_with_its_connection_is_whole() -> None:
    async with speaking(always(b"HTTP/1.1 200 OK\r\n\r\n" + EVENTS, close=True)) as origin:
        assert (await ask(origin)).error is None


async def test_the_request_says_what_it_was_given() -> None:
    heard = b""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard = await request(reader)
        writer.write(WHOLE)

    async with speaking(speak) as origin:
        answer = await ask(origin, b'{"prompt": "hi"}')
    head, _, body = heard.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/x HTTP/1.1\r\n")
    assert {b"x-a: b", b"content-length: 16", b"content-type: application/json"} <= set(head.split(b"\r\n"))
    assert body == b'{"prompt": "hi"}'
    assert answer.replica == "r7"


def test_headers_of_the_user_take_the_place_of_ours() -> None:
    origin = Origin("http://a:1", "/v1/x", {"Host": "b", "Content-Type": "c"}, time.monotonic)
    head = origin.request(b"", {}).split(b"\r\n")
    assert [line for line in head if line.lower().startswith((b"host:", b"content-type:"))] == [
        b"host: b",
        b"content-type: c",
    ]


async def test_connections_are_used_again() -> None:
    opened = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        await always(WHOLE)(reader, writer)

    async with speaking(speak) as origin:
        for _ in range(5):
            assert (await ask(origin)).error is None
    assert opened == 1


@pytest.mark.parametrize("last_words", [WHOLE.replace(b"\r\n", b"\r\nconnection: close\r\n", 1), WHOLE])
async def test_a_connection_that_the_server_closed_meanwhile_is_no_error(last_words: bytes) -> None:
    async with speaking(always(last_words, close=True)) as origin:
        for _ in range(3):
            assert (await ask(origin)).error is None


async def test_a_server_that_drops_a_used_connection_on_a_request_is_asked_once_more() -> None:
    served = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await request(reader)
        served += 1
        writer.write(WHOLE)
        await request(reader)  # and says nothing

    async with speaking(speak) as origin:
        assert (await ask(origin)).error is None
        assert (await ask(origin)).error is None
    assert served == 2


async def test_a_request_that_the_server_had_for_a_while_is_not_sent_again() -> None:
    now, heard = 0.0, 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now, heard
        await request(reader)
        writer.write(WHOLE)
        await request(reader)
        heard += 1
        now += 2 * STALE_S  # and says nothing

    async with speaking(speak, lambda: now) as origin:
        assert (await ask(origin)).error is None
        answer = await ask(origin)
    assert answer.error is not None
    assert "the server closed the connection" in answer.error
    assert heard == 1


async def test_a_connection_that_is_gone_before_it_can_be_used_is_an_error() -> None:
    class Late(Origin):
        async def connect(self) -> Connection:
            connection = await super().connect()
            connection.close()
            await asyncio.sleep(0)
            return connection

    async with speaking(always(WHOLE)) as there:
        origin = Late(f"http://127.0.0.1:{there._port}", "/v1/x", {}, time.monotonic)
        assert (await ask(origin)).error == "the server closed the connection"


async def test_a_new_connection_that_breaks_is_an_error() -> None:
    heard = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        await request(reader)
        heard += 1

    async with speaking(speak) as origin:
        answer = await ask(origin)
    assert answer.error is not None
    assert "the server closed the connection" in answer.error
    assert heard == 1


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "is not HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n" + EVENTS[:20], "closed the connection"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "without [DONE]"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ndata: {x\n", "no completion chunk"),
        (b"HTTP/1.1 500 No\r\ncontent-length: 4\r\n\r\noops", "HTTP 500: oops"),
        (b"HTTP/1.1 101 Up\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", "is not HTTP"),
        (b"HTTP/1.1 307 Go\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", "HTTP 307"),
        (b"HTTP/1.1 500 No\r\ncontent-length: 999999\r\n\r\n" + b"x" * 999999, "HTTP 500: xxx"),
    ],
)
async def test_what_is_no_answer_is_an_error_that_says_so(said: bytes, expected: str) -> None:
    async with speaking(always(said, close=True)) as origin:
        answer = await ask(origin)
    assert answer.error is not None
    assert expected in answer.error


async def test_servers_are_asked_over_tls_and_only_the_ones_they_say_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(WHOLE)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    errors = []
    for host in ("localhost", "127.0.0.1"):
        origin = Origin(f"https://{host}:{port}", "/v1/x", {}, time.monotonic)
        errors.append((await ask(origin)).error)
        await origin.close()
    server.close()
    await server.wait_closed()
    assert errors[0] is None
    assert "certificate verify failed" in (errors[1] or "")


async def test_cancelling_breaks_the_connection_so_that_the_server_knows() -> None:
    heard, left = asyncio.Event(), asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        heard.set()
        try:
            await reader.read()
        finally:
            left.set()

    async with speaking(speak) as origin:
        task = asyncio.create_task(ask(origin))
        await heard.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(10):
            await left.wait()
