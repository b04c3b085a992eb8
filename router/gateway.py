"""The front desk of the data plane: what each request is, and who answers it.

Owns the sorting of requests by path (inference, the router's own answers, anything else) and the beginning of their
exchanges. Must never wait: long prompts are read off the event loop, inside the exchange.
"""

from __future__ import annotations

import itertools
import random
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

import msgspec

from router.api import CHAT, COMPLETIONS, Ask, BadBody, read_ask
from router.decide import Decider
from router.downstream import Downstream, Limits
from router.errors import Refusal, json_response, model_not_found
from router.exchange import Exchange
from router.fleet import Fleet, Replica
from router.models import PREFIX_ENDS
from router.outbox import Outbox
from router.prompt import PromptKeys
from router.readers import PromptReaders
from router.request import Request
from router.routes import InferenceRoute, PlainRoute, pool_of
from router.telemetry import Telemetry
from scoring.answers import TYPICAL_TOKENS, AnswerTimes
from scoring.by_load import LeastLoad
from scoring.decision import Query

INFERENCE = {CHAT.encode(): CHAT, COMPLETIONS.encode(): COMPLETIONS}
MODELS = b"/v1/models"
HEALTH = b"/health"
LONGEST_OUTPUT = 32_768
SAFE_METHODS = (b"GET", b"HEAD", b"OPTIONS")


class ModelOnly(msgspec.Struct):
    """The one field of an unknown body that helps to route it."""

    model: str


class Gateway:
    """Takes whole requests from client connections, and starts their answers."""

    def __init__(
        self,
        fleet: Fleet,
        decider: Decider,
        readers: PromptReaders,
        telemetry: Telemetry,
        limits: Limits,
        outbox: Outbox,
        *,
        attempts: int,
        response_timeout_s: float,
        clock: Callable[[], float],
        suspect: Callable[[Replica], None],
    ) -> None:
        self.fleet = fleet
        self.telemetry = telemetry
        self.limits = limits
        self.outbox = outbox
        self.attempts = attempts
        self.response_timeout_s = response_timeout_s
        self.draining = False
        self.answer_times = AnswerTimes()
        self._decider = decider
        self._readers = readers
        self.clock = clock
        self._suspect = suspect
        self._by_load = LeastLoad(random.Random())
        self._run = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._model_decoder = msgspec.json.Decoder(ModelOnly)

    def suspect(self, replica: Replica) -> None:
        self._suspect(replica)

    def refused(self, refusal: Refusal) -> None:
        self.telemetry.answers[""][refusal.status] += 1

    def open(self, client: Downstream, request: Request) -> None:
        """Answer at once, or attach an exchange to the client and start it."""
        started = self.clock()
        if self.draining:
            request.keep_alive = False
        path = request.target if b"?" not in request.target else request.path
        try:
            inference = INFERENCE.get(path)
            if inference is not None and request.method == b"POST":
                self._infer(client, request, inference, started)
            elif request.method == b"CONNECT":
                raise Refusal(405, "RadixGate is a reverse proxy; it does not open tunnels.")
            elif request.method not in (b"GET", b"HEAD") or not self._answer_here(client, request, path):
                self._pass_on(client, request, started)
        except Refusal as refusal:
            self.refused(refusal)
            client.decline(request, refusal)

    # Inference.

    def _infer(self, client: Downstream, request: Request, path: str, started: float) -> None:
        try:
            ask = read_ask(path, request.body)
            pool = pool_of(self.fleet, ask.model)
            prompt = self._readers.of(pool).prepare(ask, path)
        except BadBody as bad:
            raise Refusal(400, str(bad), param=bad.param) from None
        exchange = self._exchange(client, request, started)
        if isinstance(prompt, PromptKeys):
            exchange.begin(self._route(request, exchange, ask, path, prompt))
            self.telemetry.decision.add(self.clock() - started)
        else:
            exchange.begin_later(self._route_later(request, exchange, ask, path, prompt))

    async def _route_later(
        self, request: Request, exchange: Exchange, ask: Ask, path: str, prompt: Awaitable[PromptKeys]
    ) -> InferenceRoute:
        try:
            keys = await prompt
        except BadBody as bad:
            raise Refusal(400, str(bad), param=bad.param) from None
        return self._route(request, exchange, ask, path, keys)

    def _route(self, request: Request, exchange: Exchange, ask: Ask, path: str, prompt: PromptKeys) -> InferenceRoute:
        self.telemetry.modes[prompt.mode] += 1
        output = ask.max_completion_tokens or ask.max_tokens or TYPICAL_TOKENS
        output = min(max(output, 1), LONGEST_OUTPUT)  # whether the number makes sense is the replica's to say
        session = request.session or ask.session or ""
        keys = prompt.keys
        prefix = keys[1] if len(keys) > 1 else keys[0] if keys else 0  # a key names all that comes before it, too
        return InferenceRoute(
            self.fleet,
            self._decider,
            prompt,
            Query(
                prompt.tokens,
                output,
                session,
                prefix,
                self.clock(),
                bool(ask.stream),
                self.answer_times.predict(output),
            ),
            exchange.request_id,
            ask.model,
            path,
            self.clock,
        )

    def _exchange(self, client: Downstream, request: Request, started: float) -> Exchange:
        request_id = request.request_id or f"{self._run}-{next(self._numbers):x}"
        exchange = Exchange(self, client, request, request_id, started)
        client.attach(exchange)
        return exchange

    # Everything else.

    def _pass_on(self, client: Downstream, request: Request, started: float) -> None:
        model = self._model_of(request)
        # A body that names a model asks for a computation (embeddings, ranking, …), which may be made again elsewhere.
        repeatable = request.method in SAFE_METHODS or model is not None
        route = PlainRoute(self.fleet, self._by_load, model, repeatable=repeatable)
        self._exchange(client, request, started).begin(route)

    def _answer_here(self, client: Downstream, request: Request, path: bytes) -> bool:
        """The router's own answers: what only it knows of the whole fleet."""
        if path == MODELS:
            body = msgspec.json.encode({"object": "list", "data": self._cards()})
        elif path.startswith(MODELS + b"/"):
            model = unquote(path[len(MODELS) + 1 :])
            card = next((card for card in self._cards() if card["id"] == model), None)
            if card is None:
                raise model_not_found(model)
            body = msgspec.json.encode(card)
        elif path == HEALTH:
            up = len(self.fleet.up())
            self._respond(client, request, 200 if up else 503, msgspec.json.encode({"replicas_up": up}))
            return True
        else:
            return False
        self._respond(client, request, 200, body)
        return True

    def _cards(self) -> list[dict[str, object]]:
        """Every model that can be asked for by name now, as the first replica that serves it describes it."""
        cards: dict[str, dict[str, object]] = {}
        for replica in self.fleet.up():
            described = {card["id"]: card for card in replica.cards}
            for name in replica.serves or ():
                if not name.endswith(PREFIX_ENDS):
                    plain = {"id": name, "object": "model", "created": 0, "owned_by": "radixgate"}
                    cards.setdefault(name, described.get(name, plain))
        return list(cards.values())

    def _model_of(self, request: Request) -> str | None:
        if request.method in SAFE_METHODS or not request.body[:64].lstrip().startswith(b"{"):
            return None
        try:
            return self._model_decoder.decode(request.body).model
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _respond(self, client: Downstream, request: Request, status: int, body: bytes) -> None:
        self.telemetry.answers[""][status] += 1
        client.write_soon(json_response(status, body, close=not request.keep_alive, head_only=request.head_only))
        client.answered(keep_alive=request.keep_alive)
