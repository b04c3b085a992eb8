"""A runner that answers everything from one script, and gives log probabilities; and a server around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from functools import cache

from aiohttp import web

from radix.chat import ChatTokenizer
from radix.events import Registration
from replica import tokenizer as bundled
from replica.blocks import BlockPool
from replica.engine import Engine
from replica.intake import Intake
from replica.journal import Journal
from replica.metrics import Metrics
from replica.request import Request
from replica.runner import Sampled
from replica.sampling_params import SamplingParams, TokenLogprobs
from replica.scheduler import Scheduler, Slice, Step
from replica.server import Server


class ScriptedRunner:
    """Each answer is `script`, again and again. Token t has the logprob -t / 1000, and its likeliest rivals are the
    tokens before it in the vocabulary: (t - 1, -0.25), (t - 2, -0.5) and so on. Remembers every request it saw.
    """

    lookahead = 1

    def __init__(self, script: Sequence[int]) -> None:
        self._script = script
        self.seen: dict[Request, None] = {}

    def run(self, step: Step) -> Awaitable[Sampled]:
        self.seen |= {part.request: None for part in step.slices}
        sampling = [part for part in step.slices if part.samples]
        tokens = [self._next(part) for part in sampling]
        logprobs = [_logprobs(part.request, token) for part, token in zip(sampling, tokens, strict=True)]
        return asyncio.sleep(0, Sampled(tokens, logprobs if any(logprobs) else ()))

    def _next(self, part: Slice) -> int:
        return self._script[(part.start + part.count - part.request.prompt_tokens) % len(self._script)]


def _logprobs(request: Request, token: int) -> TokenLogprobs | None:
    wanted = request.sampling.logprobs
    if wanted is None:
        return None
    return TokenLogprobs(-token / 1000, tuple((token - at, -0.25 * at) for at in range(1, wanted + 1)))


@cache
def bundled_tokenizer() -> ChatTokenizer:
    return ChatTokenizer.load(bundled.directory())


@asynccontextmanager
async def scripted_server(
    script: Sequence[int], defaults: SamplingParams | None = None
) -> AsyncIterator[tuple[str, ScriptedRunner]]:
    """The URL of a server for the model `scripted`, and its runner."""
    tokenizer = bundled_tokenizer()
    scheduler = Scheduler(BlockPool(256, 16))
    runner = ScriptedRunner(script)
    metrics = Metrics(scheduler, "scripted")
    engine = Engine(scheduler, runner, Journal("r", 1), metrics)
    intake = Intake(tokenizer, "scripted", 2048, defaults or SamplingParams(), logprobs=True)
    account = Registration("r", "", 1, ("scripted",), 16, 256, str(bundled.directory()), tokenizer.fingerprint, 2048)
    http = web.AppRunner(Server(engine, intake, metrics, lambda: account).application(), shutdown_timeout=0.1)
    await http.setup()
    await web.TCPSite(http, "127.0.0.1", 0).start()
    engine.start()
    try:
        yield f"http://127.0.0.1:{http.addresses[0][1]}", runner
    finally:
        await engine.stop()
        await http.cleanup()
        intake.close()
