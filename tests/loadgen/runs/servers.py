"""Small servers with OpenAI's streams, and small plans to ask of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from loadgen.plans.plan import Piece, Plan, Session, Turn
from loadgen.plans.prompts import Prompts
from loadgen.records import Record
from loadgen.runs.runner import Runner
from loadgen.runs.target import Target

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
USAGE = {"prompt_tokens": 40, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 32}}


@asynccontextmanager
async def serving_app(app: web.Application) -> AsyncIterator[str]:
    """Its origin."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """The origin of a server that answers completions and chats with `handler`."""
    app = web.Application()
    app.router.add_post("/v1/completions", handler)
    app.router.add_post("/v1/chat/completions", handler)
    async with serving_app(app) as url:
        yield url


async def begin(request: web.Request, **headers: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream", **headers})
    await response.prepare(request)
    return response


def event(payload: object) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def text(content: str) -> bytes:
    return event({"choices": [{"index": 0, "text": content, "finish_reason": None}]})


async def answer_well(request: web.Request) -> web.StreamResponse:
    response = await begin(request, **{"x-radixgate-replica": "r1"})
    for part in ("one ", "two ", "three"):
        await response.write(text(part))
    await response.write(event({"choices": [], "usage": USAGE}) + b"data: [DONE]\n\n")
    return response


def turn(output: int = 8, think_s: float = 0.0, due_s: float | None = None, content: int = 0) -> Turn:
    return Turn((Piece(content, 20),), output, think_s, due_s)


def session(*turns: Turn, start_s: float = 0.0, group: int = 0) -> Session:
    return Session(start_s, turns or (turn(),), group)


def plan(*sessions: Session, duration_s: float = 5.0, concurrency: int | None = None, growing: bool = False) -> Plan:
    return Plan("test", 1, {}, duration_s, sessions, growing, concurrency)


def runner(url: str | Sequence[str], asked: Plan, drain_s: float = 8.0, **more: Any) -> Runner:
    urls = (url,) if isinstance(url, str) else tuple(url)
    target = Target("test", urls, "m", headers=more.pop("headers", {}))
    return Runner(target, asked, Prompts(asked, "text", "planned"), drain_s=drain_s, **more)


async def run(url: str, asked: Plan, drain_s: float = 8.0, **more: Any) -> list[Record]:
    return await runner(url, asked, drain_s, **more).run()
