"""The replica's HTTP server: OpenAI's API, vLLM's extras, and a few pages for routers.

Owns the routes and the life of a response. Must never leave a request in the engine whose client has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import msgspec
from aiohttp import web

from radix.chat import token_files
from radix.events import KEY_BYTES, Registration, encode, pack_keys, unpack_keys
from replica.answers import DONE, ChatForm, CompletionForm, Form, sse, whole_body
from replica.engine import Engine, EngineStopped
from replica.errors import CONTEXT_LENGTH_EXCEEDED, ApiError, error_body
from replica.generation import Generation, GenerationFailed, Output
from replica.intake import Intake
from replica.metrics import Metrics
from replica.request import Request
from replica.scheduler import NeverFits
from replica.schema import ChatAsk, CompletionAsk, DetokenizeAsk, TokenizeAsk, read

CACHED_TOKENS = "x-radixgate-cached-tokens"
EPOCH = "x-radixgate-epoch"
MOST_BODY_BYTES = 64 * 2**20
# Blocks that one request may ask for, or ask about: a few milliseconds of the engine's time.
MOST_KEYS = 10_000

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The handlers. `account` gives the replica's current account of itself."""

    def __init__(self, engine: Engine, intake: Intake, metrics: Metrics, account: Callable[[], Registration]) -> None:
        self._engine = engine
        self._intake = intake
        self._metrics = metrics
        self._account = account
        self._random = Random()
        self.draining = False

    def application(self) -> web.Application:
        app = web.Application(middlewares=[_errors_in_openai_form], client_max_size=MOST_BODY_BYTES)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completion),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{model:.+}", self._model),
                web.post("/tokenize", self._tokenize),
                web.post("/detokenize", self._detokenize),
                web.get("/health", self._health),
                web.get("/metrics", self._prometheus),
                web.get("/version", self._version),
                web.get("/radixgate/info", self._info),
                web.get("/radixgate/blocks", self._blocks),
                web.post("/radixgate/holds", self._holds),
                web.get("/radixgate/tokenizer", self._token_files),
            ]
        )
        return app

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        body = await http.read()
        ask = read(body, ChatAsk)
        requests = await self._intake.chat(ask, len(body))
        return await self._answer(http, requests, self._form(ChatForm, http, ask), bool(ask.stream))

    async def _completion(self, http: web.Request) -> web.StreamResponse:
        body = await http.read()
        ask = read(body, CompletionAsk)
        requests = await self._intake.completion(ask, len(body))
        return await self._answer(http, requests, self._form(CompletionForm, http, ask), bool(ask.stream))

    def _form(self, kind: type[Form], http: web.Request, ask: ChatAsk | CompletionAsk) -> Form:
        return kind(ask.model, _id(http), ask.wants_usage, self._intake.tokenizer.pieces)

    async def _answer(self, http: web.Request, requests: list[Request], form: Form, stream: bool) -> web.StreamResponse:
        generation = self._submit(requests)
        try:
            # Nothing is sent before the first token: until then the client, or a router, can be given a plain error.
            first = await anext(generation)
            if stream:
                return await _stream(http, generation, form, first)
            return await _whole(generation, form, first)
        except GenerationFailed as error:
            raise self._failed(error) from None
        finally:
            self._engine.cancel(generation)

    def _failed(self, error: GenerationFailed) -> ApiError:
        if self.draining:
            # Nothing of the answer has been sent: a router may have it computed elsewhere.
            return ApiError(str(error), status=HTTPStatus.SERVICE_UNAVAILABLE, code="unavailable")
        return ApiError(str(error), status=HTTPStatus.INTERNAL_SERVER_ERROR)

    def _submit(self, requests: list[Request]) -> Generation:
        try:
            if self.draining:
                raise EngineStopped("the replica is shutting down")
            return self._engine.submit(requests)
        except EngineStopped as error:
            raise ApiError(str(error), status=HTTPStatus.SERVICE_UNAVAILABLE, code="unavailable") from None
        except NeverFits as error:
            raise ApiError(str(error), code=CONTEXT_LENGTH_EXCEEDED) from None

    async def _models(self, http: web.Request) -> web.Response:
        return _json({"object": "list", "data": [self._card()]})

    async def _model(self, http: web.Request) -> web.Response:
        if http.match_info["model"] != self._intake.model:
            raise ApiError(
                f"The model `{http.match_info['model']}` does not exist.", status=404, code="model_not_found"
            )
        return _json(self._card())

    def _card(self) -> dict[str, Any]:
        account = self._account()
        return {
            "id": self._intake.model,
            "object": "model",
            "created": account.epoch // 10**9,
            "owned_by": "radixgate",
            "root": self._intake.model,
            "parent": None,
            "max_model_len": self._intake.max_model_len,
        }

    async def _tokenize(self, http: web.Request) -> web.Response:
        body = await http.read()
        ask = read(body, TokenizeAsk)
        tokens = await self._intake.tokens(ask, len(body))
        answer = {
            "count": len(tokens),
            "max_model_len": self._intake.max_model_len,
            "tokens": tokens,
            "token_strs": await self._intake.strings(tokens) if ask.return_token_strs else None,
        }
        return _json(answer)

    async def _detokenize(self, http: web.Request) -> web.Response:
        ask = read(await http.read(), DetokenizeAsk)
        return _json({"prompt": await self._intake.decode(ask.tokens)})

    async def _health(self, http: web.Request) -> web.Response:
        if self.draining:
            raise ApiError("the replica is shutting down", status=HTTPStatus.SERVICE_UNAVAILABLE)
        if not self._engine.healthy:
            reason = self._engine.failure or "the engine does not run"
            raise ApiError(reason, status=HTTPStatus.SERVICE_UNAVAILABLE)
        return web.Response()

    async def _prometheus(self, http: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"content-type": "text/plain; version=0.0.4"})

    async def _version(self, http: web.Request) -> web.Response:
        return _json({"version": _own_version()})

    async def _info(self, http: web.Request) -> web.Response:
        return _json(self._account())

    async def _blocks(self, http: web.Request) -> web.Response:
        """Everything resident, as a snapshot; with ?sample=N the packed keys of N resident blocks drawn at random."""
        if "sample" not in http.query:
            return web.Response(body=encode(self._engine.snapshot()), content_type="application/msgpack")
        size = _sample_size(http.query["sample"])
        self._engine.publish()
        keys = self._engine.scheduler.pool.sample(size, self._random)
        return self._audited(msgspec.msgpack.encode(pack_keys(keys)), "application/msgpack")

    async def _holds(self, http: web.Request) -> web.Response:
        """The body is packed block keys; the answer has a byte for each: 1 if the block is resident, else 0."""
        packed = await http.read()
        if len(packed) % KEY_BYTES or len(packed) > MOST_KEYS * KEY_BYTES:
            raise ApiError(
                f"The body must be up to {MOST_KEYS} block keys of {KEY_BYTES} bytes each (little-endian), not "
                f"{len(packed)} bytes."
            )
        self._engine.publish()
        held = self._engine.scheduler.pool.holds(unpack_keys(packed))
        return self._audited(bytes(held), "application/octet-stream")

    def _audited(self, body: bytes, kind: str) -> web.Response:
        """Others compare such an answer with what they believe. So it says whose it is, and nothing in it is news: what
        the step under way has evicted was put on record first.
        """
        return web.Response(body=body, content_type=kind, headers={EPOCH: str(self._account().epoch)})

    async def _token_files(self, http: web.Request) -> web.Response:
        """The files that decide tokens, for a router that does not share this machine's disk: name -> content."""
        files = await asyncio.to_thread(token_files, Path(self._account().tokenizer))
        return web.Response(body=msgspec.msgpack.encode(files), content_type="application/msgpack")


async def _whole(generation: Generation, form: Form, first: list[tuple[int, Output]]) -> web.Response:
    parts: list[list[Output]] = [[] for _ in generation.requests]
    _collect(parts, first)
    async for grown in generation:
        _collect(parts, grown)
    body = await whole_body(form, parts, generation.requests)
    headers = {CACHED_TOKENS: str(generation.cached_tokens)}
    return web.Response(body=body, content_type="application/json", headers=headers)


def _collect(parts: list[list[Output]], grown: list[tuple[int, Output]]) -> None:
    for index, output in grown:
        parts[index].append(output)


async def _stream(
    http: web.Request, generation: Generation, form: Form, first: list[tuple[int, Output]]
) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            CACHED_TOKENS: str(generation.cached_tokens),
        }
    )
    await response.prepare(http)
    opened: set[int] = set()
    await _send(response, form, opened, first)
    try:
        async for grown in generation:
            await _send(response, form, opened, grown)
        if form.with_usage:
            await response.write(form.usage_chunk(generation.requests))
    except GenerationFailed as error:
        await response.write(sse(error_body(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))))
    await response.write(DONE)
    await response.write_eof()
    return response


async def _send(response: web.StreamResponse, form: Form, opened: set[int], grown: list[tuple[int, Output]]) -> None:
    events = []
    for index, output in grown:
        if index not in opened:
            opened.add(index)
            events.append(form.opening(index))
        events.append(form.chunk(index, output))
    if data := b"".join(events):
        await response.write(data)


@web.middleware
async def _errors_in_openai_form(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return web.Response(body=error.body(), status=error.status, content_type="application/json")
    except web.HTTPException as error:
        headers = {"allow": error.headers["allow"]} if "allow" in error.headers else None
        message = {
            404: f"There is no {request.path} here; this is an OpenAI-compatible server, try /v1/models.",
            405: f"{request.path} does not take {request.method}.",
            413: f"The request body is larger than {MOST_BODY_BYTES} bytes.",
        }.get(error.status, error.reason)
        body = error_body(error.status, message)
        return web.Response(body=body, status=error.status, content_type="application/json", headers=headers)


def _sample_size(text: str) -> int:
    """Raises ApiError for anything but a positive number."""
    if not (text.isascii() and text.isdigit() and text.strip("0")):
        raise ApiError(f"`sample` must be a number of blocks, from 1 to {MOST_KEYS}.", param="sample")
    return MOST_KEYS if len(text) > len(str(MOST_KEYS)) else min(int(text), MOST_KEYS)


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _id(http: web.Request) -> str:
    return http.headers.get("x-request-id") or uuid4().hex


def _own_version() -> str:
    try:
        return version("radixgate")
    except PackageNotFoundError:
        return "unknown"
