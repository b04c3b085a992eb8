"""One replica, put together: engine, server and reporter, from settings.

Owns the order in which they start and end. Must hold no logic beyond that.
"""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from radix.chat import ChatTokenizer
from radix.events import Registration
from replica.admin import Admin
from replica.backend import Progress, open_backend
from replica.blocks import BlockPool
from replica.engine import Engine
from replica.intake import Intake
from replica.journal import Journal
from replica.kv_events import KvEventPublisher, KvEventsError
from replica.metrics import Metrics
from replica.reporter import Reporter
from replica.reuse import make_eviction
from replica.scheduler import Scheduler
from replica.server import Server
from replica.settings import Settings
from replica.simulated import SimulatedRunner

# Routers keep connections and reuse them: they, not we, should be the ones to close.
_KEEP_ALIVE_S = 600.0
# For handlers to write their last words once the engine has stopped.
_LAST_WORDS_S = 2.0


class ReplicaService:
    """`start`, then serve until `stop`. Loads the model when it is made, which may take minutes.

    Raises TokenizerError when the tokenizer cannot be loaded, ModelError when the model cannot be served, and
    KvEventsError when an endpoint for KV events is none.
    """

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        self._settings = settings
        self._epoch = time.time_ns()
        self._tokenizer = ChatTokenizer.load(settings.tokenizer_directory)
        self._kv_events = _kv_events(settings)
        self._backend = backend = open_backend(settings, self._tokenizer, progress)
        pool = BlockPool(
            backend.kv_blocks,
            settings.block_size,
            sharing=settings.prefix_cache,
            witness=self._kv_events,
            eviction=make_eviction(settings.eviction, backend.kv_blocks),
        )
        scheduler = Scheduler(pool, settings.limits)
        journal = Journal(settings.name, self._epoch)
        metrics = Metrics(scheduler, settings.model)
        on_publish = self._kv_events.flush if self._kv_events else None
        self.engine = Engine(scheduler, backend.runner, journal, metrics, on_publish=on_publish)
        self._intake = Intake(
            self._tokenizer,
            settings.model,
            backend.max_model_len,
            backend.defaults,
            logprobs=backend.logprobs,
            eos_ids=backend.eos_ids,
        )
        self._server = Server(self.engine, self._intake, metrics, self.account)
        self._reporter = Reporter(
            journal, self.account, self.engine.snapshot, controls=settings.join, reports=settings.report
        )
        application = self._server.application()
        if isinstance(backend.runner, SimulatedRunner):
            application.add_routes(Admin(self.engine, backend.runner).routes())
        self._http = web.AppRunner(
            application,
            access_log=None,
            handler_cancellation=True,  # a client that leaves takes its requests with it
            keepalive_timeout=_KEEP_ALIVE_S,
            shutdown_timeout=_LAST_WORDS_S,
        )

    @property
    def url(self) -> str:
        """Where it listens. Only after `start`."""
        host, port = self._http.addresses[0][:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def account(self) -> Registration:
        """What the fleet is told about it."""
        settings = self._settings
        return Registration(
            name=settings.name,
            url=settings.advertise or self.url,
            epoch=self._epoch,
            models=(settings.model,),
            block_size=settings.block_size,
            capacity_blocks=self._backend.kv_blocks,
            tokenizer=str(settings.tokenizer_directory.resolve()),
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            max_model_len=self._backend.max_model_len,
        )

    async def start(self) -> None:
        """Raises OSError when it cannot listen, KvEventsError when it cannot publish."""
        await self._http.setup()
        try:
            await web.TCPSite(self._http, self._settings.host, self._settings.port).start()
            if self._kv_events is not None:
                self._kv_events.start()
        except (OSError, KvEventsError):
            await self._http.cleanup()
            raise
        self.engine.start()
        self._reporter.start()

    async def stop(self) -> None:
        """Takes leave of the fleet, gives requests under way `drain_s` to finish, and ends everything."""
        self._server.draining = True
        await self._reporter.stop()
        try:
            async with asyncio.timeout(self._settings.drain_s):
                await self.engine.idle()
        except TimeoutError:
            pass
        await self.engine.stop()
        await self._http.cleanup()
        self._intake.close()
        if self._kv_events is not None:
            await self._kv_events.close()
        await asyncio.to_thread(self._backend.close)  # a step may still be under way


def _kv_events(settings: Settings) -> KvEventPublisher | None:
    where = settings.kv_events
    if where is None:
        return None
    return KvEventPublisher(
        where.endpoint,
        block_size=settings.block_size,
        replay_endpoint=where.replay or None,
        topic=where.topic,
    )
