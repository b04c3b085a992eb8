"""One replica, put together: engine, server and reporter, from settings.

Owns the order in which they start and end. Must hold no logic beyond that.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from radix.chat import ChatTokenizer
from radix.events import Registration
from replica import tokenizer as bundled
from replica.blocks import BlockPool
from replica.engine import Engine
from replica.intake import Intake
from replica.journal import Journal
from replica.metrics import Metrics
from replica.reporter import Reporter
from replica.scheduler import Scheduler, SchedulerLimits
from replica.server import Server
from replica.simulated import Book, SimulatedRunner, TimingModel, first_eos

# Routers keep connections and reuse them: they, not we, should be the ones to close.
_KEEP_ALIVE_S = 600.0
# For handlers to write their last words once the engine has stopped.
_LAST_WORDS_S = 2.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a simulated replica is. `port` 0 takes a free one; `join` lists the control addresses of routers to report
    to, `report` the URLs of Redis.
    """

    name: str
    model: str = "simulated"
    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""
    join: tuple[str, ...] = ()
    report: tuple[str, ...] = ()
    tokenizer: Path = field(default_factory=bundled.directory)
    block_size: int = 16
    kv_blocks: int = 8192
    max_model_len: int = 32_768
    limits: SchedulerLimits = field(default_factory=SchedulerLimits)
    timing: TimingModel = field(default_factory=TimingModel)
    speedup: float = 1.0
    drain_s: float = 2.0


class ReplicaService:
    """`start`, then serve until `stop`. Raises TokenizerError when the tokenizer cannot be loaded."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._epoch = time.time_ns()
        self._tokenizer = ChatTokenizer.load(settings.tokenizer)
        scheduler = Scheduler(BlockPool(settings.kv_blocks, settings.block_size), settings.limits)
        runner = SimulatedRunner(
            Book.of(bundled.corpus(), self._tokenizer),
            settings.timing,
            eos=first_eos(self._tokenizer.eos_ids),
            speedup=settings.speedup,
        )
        journal = Journal(settings.name, self._epoch)
        metrics = Metrics(scheduler, settings.model)
        self.engine = Engine(scheduler, runner, journal, metrics)
        self._intake = Intake(self._tokenizer, settings.model, settings.max_model_len)
        self._server = Server(self.engine, self._intake, metrics, self.account)
        self._reporter = Reporter(
            journal, self.account, self.engine.snapshot, controls=settings.join, reports=settings.report
        )
        self._http = web.AppRunner(
            self._server.application(),
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
            capacity_blocks=settings.kv_blocks,
            tokenizer=str(settings.tokenizer.resolve()),
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            max_model_len=settings.max_model_len,
        )

    async def start(self) -> None:
        """Raises OSError when it cannot listen."""
        await self._http.setup()
        try:
            await web.TCPSite(self._http, self._settings.host, self._settings.port).start()
        except OSError:
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
