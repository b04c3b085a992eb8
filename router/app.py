"""The router, assembled: makes the parts, starts the servers, sweeps, and shuts down in order.

Owns the wiring and the lifetimes of everything in one router process. Must hold no logic of its own.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from radix.chat import TokenizerError
from router.auditor import Auditor
from router.config import ConfigError, ServeConfig, parse_address
from router.control import ControlPlane
from router.decide import Decider
from router.downstream import Downstream, Limits
from router.fleet import Address, Fleet, Replica, State
from router.gateway import Gateway
from router.health import HealthProber
from router.joins import Joins
from router.local_joins import LocalJoins
from router.outbox import Outbox
from router.prompt import TEXT_BLOCK_TOKENS
from router.readers import PromptReaders
from router.residency import Residency
from router.roster import Roster
from router.telemetry import ReplicaGauges, Telemetry
from router.truth import LocalTruth, Truth
from router.upstream import ConnectionPool
from scoring.calibration import Calibration
from scoring.policies import make_policy

if TYPE_CHECKING:
    from router.sharing import Sharing

log = logging.getLogger("radixgate")

SWEEP_S = 0.5
POOL_SWEEP_S = 60.0
TOKENIZER_THREADS = 2
BACKLOG = 4096
LOOK_S = 0.01
ACQUAINTANCE_LOOKS = 500  # 5 s


class Router:
    """One router process. `start` it, then `stop` it; what was started is stopped in the reverse order."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._stack = AsyncExitStack()
        self._connections: set[Downstream] = set()
        self._tls: ssl.SSLContext | None = None
        self._gateway: Gateway
        self._control: ControlPlane
        self._outbox: Outbox
        self.listen_address = ""
        self.control_address = ""

    async def start(self) -> None:
        """Raises ConfigError when an address is taken, a URL is wrong or a tokenizer cannot be used."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> None:
        config, loop = self._config, asyncio.get_running_loop()
        self._outbox = Outbox(loop.call_soon)
        executor = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenize")
        self._stack.callback(executor.shutdown, wait=False, cancel_futures=True)
        # A probe over a kept connection would not notice that new ones are refused.
        connector = aiohttp.TCPConnector(force_close=True)
        http = await self._stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        telemetry = Telemetry()
        fleet = Fleet()
        self._stack.callback(fleet.close)
        fleet.subscribe(lambda replica: telemetry.forget(replica.name) if fleet.get(replica.name) is None else None)
        fleet.subscribe(partial(_learn, fleet, Calibration()))
        truth, joins, sharing = self._membership(fleet, http, telemetry)
        residency = Residency(
            fleet,
            truth,
            memory_blocks=max(config.predicted_tokens // TEXT_BLOCK_TOKENS, 1),
            memory_ttl_s=config.predicted_ttl,
            private=config.private,
        )
        readers = PromptReaders(fleet, {model: Path(path) for model, path in config.tokenizers.items()}, executor, http)
        self._stack.push_async_callback(readers.close)
        prober = HealthProber(fleet, http, interval_s=config.health_interval)
        self._stack.push_async_callback(prober.close)
        decider = Decider(make_policy(config.policy, random.Random(config.seed)), residency, telemetry)
        self._gateway = self._make_gateway(fleet, decider, readers, telemetry, prober)
        health = None if sharing is None else sharing.health
        self._control = ControlPlane(fleet, residency, decider, joins, telemetry, health)
        auditor = Auditor(fleet, residency.believed, http, joins.resync, residency.demote)
        self._stack.push_async_callback(auditor.close)
        telemetry.sources.append(auditor.metrics)
        telemetry.replicas = lambda: [_gauges(replica, residency) for replica in fleet]
        telemetry.index_blocks = lambda: len(residency.index)
        try:
            readers.load_given()
        except TokenizerError as error:
            raise ConfigError(f"--tokenizer: {error}") from None
        await self._open_ports()
        self._add_configured(fleet)
        if sharing is not None:
            sharing.start(residency, decider)
        await self._join_the_workers(fleet, sharing)
        auditor.start()
        sweeper = loop.create_task(self._sweep(fleet, residency, joins, telemetry))
        self._stack.push_async_callback(_cancelled, sweeper)
        _quiet_collector()

    async def stop(self) -> None:
        """Stop accepting, let what is under way end (within the drain timeout), then close everything."""
        self._gateway.draining = self._control.draining = True
        self._server.close()
        deadline = asyncio.get_running_loop().time() + self._config.drain_timeout
        while self._connections and asyncio.get_running_loop().time() < deadline:
            for connection in list(self._connections):
                connection.close_when_idle()
            await asyncio.sleep(0.02)
        if self._connections:
            log.warning("closing %d connections that did not end in time", len(self._connections))
        for connection in list(self._connections):
            connection.transport.abort()
        await self._stack.aclose()
        await asyncio.sleep(0)  # the transports closed above say goodbye in the next turn of the loop

    def _membership(
        self, fleet: Fleet, http: aiohttp.ClientSession, telemetry: Telemetry
    ) -> tuple[Truth, Joins, Sharing | None]:
        """What is reported and who has joined: of this router alone, or of all that share a Redis."""
        roster = Roster(fleet, self._make_replica)
        if not self._config.redis:
            truth = LocalTruth(fleet)
            local = LocalJoins(fleet, roster, truth, http, telemetry, monotonic)
            self._stack.push_async_callback(local.close)
            return truth, local, None
        from radix.redis_link import RedisUrlError
        from router.sharing import Sharing  # loads redis-py, which a router by itself never needs

        try:
            sharing = Sharing(self._config.redis, fleet, telemetry, monotonic, private=self._config.private)
        except RedisUrlError as error:
            raise ConfigError(f"--redis: {error}") from None
        self._stack.push_async_callback(sharing.close)
        shared = sharing.joins(roster, http)
        self._stack.push_async_callback(shared.close)
        return sharing.truth, shared, sharing

    def _make_gateway(
        self, fleet: Fleet, decider: Decider, readers: PromptReaders, telemetry: Telemetry, prober: HealthProber
    ) -> Gateway:
        config = self._config
        limits = Limits(
            max_body=config.max_body,
            max_head=config.max_head,
            read_timeout_s=config.read_timeout,
            idle_timeout_s=config.idle_timeout,
        )
        return Gateway(
            fleet,
            decider,
            readers,
            telemetry,
            limits,
            self._outbox,
            attempts=config.attempts,
            response_timeout_s=config.response_timeout,
            clock=monotonic,
            suspect=prober.suspect,
        )

    async def _open_ports(self) -> None:
        loop = asyncio.get_running_loop()
        host, port = parse_address(self._config.listen, "--listen")
        try:
            self._server = await loop.create_server(
                lambda: Downstream(self._gateway, self._connections),
                host,
                port,
                backlog=BACKLOG,
                reuse_port=self._config.workers > 1,  # alone, a second start on the port must fail
                start_serving=self._config.workers == 1,
            )
        except OSError as error:
            raise ConfigError(f"--listen {self._config.listen}: {error.strerror or error}") from None
        self._stack.callback(self._server.close)
        runner = web.AppRunner(self._control.application(), access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        host, port = parse_address(self._config.control, "--control")
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(f"--control {self._config.control}: {error.strerror or error}") from None
        self.listen_address = _spell(self._server.sockets[0].getsockname())
        self.control_address = _spell(runner.addresses[0])

    async def _join_the_workers(self, fleet: Fleet, sharing: Sharing | None) -> None:
        """One that listens gets its share of the connections at once: it should know by then which replicas live."""
        if self._config.workers == 1:
            return
        for _ in range(ACQUAINTANCE_LOOKS):
            settled = sharing is None or sharing.settled
            if settled and all(replica.state is not State.UNKNOWN for replica in fleet):
                break
            await asyncio.sleep(LOOK_S)
        await self._server.start_serving()

    def _add_configured(self, fleet: Fleet) -> None:
        for said in self._config.replicas:
            try:
                address = Address(said.url)
                replica = self._make_replica(said.name or address.authority, address)
                replica.declared = said.models
                fleet.add(replica)
            except ValueError as error:
                raise ConfigError(f"--replica: {error}") from None

    def _make_replica(self, name: str, address: Address) -> Replica:
        if address.tls and self._tls is None:
            self._tls = ssl.create_default_context()  # loads all the authorities' certificates
        tls = self._tls if address.tls else None
        pool = ConnectionPool(
            address.host, address.port, tls, self._outbox, connect_timeout_s=self._config.connect_timeout
        )
        return Replica(name, address, pool)

    async def _sweep(self, fleet: Fleet, residency: Residency, joins: Joins, telemetry: Telemetry) -> None:
        """The one timer: leases, quiet connections, expired predictions, fresh figures."""
        pools_due = monotonic() + POOL_SWEEP_S
        while True:
            await asyncio.sleep(SWEEP_S)
            now = monotonic()
            try:
                joins.expire()
                residency.sweep(now)
                telemetry.fold()
                self._sweep_connections(now)
                if now >= pools_due:
                    pools_due = now + POOL_SWEEP_S
                    for replica in fleet:
                        replica.connections.close_quiet()
            except Exception:  # everything that ends by time ends here: this loop must not
                log.exception("a sweep failed")

    def _sweep_connections(self, now: float) -> None:
        for connection in list(self._connections):
            try:
                connection.sweep(now)
            except Exception:  # one of them must not keep the others waiting
                log.exception("a connection could not be swept")
                connection.transport.abort()


def _learn(fleet: Fleet, calibration: Calibration, replica: Replica) -> None:
    """Rates are learned of every replica that is there."""
    if fleet.get(replica.name) is replica:
        calibration.attach(replica.load)
    else:
        calibration.detach(replica.load)


def _gauges(replica: Replica, residency: Residency) -> ReplicaGauges:
    load = replica.load
    return ReplicaGauges(
        name=replica.name,
        up=replica.state is State.UP,
        waiting=load.waiting,
        decoding=load.decoding,
        queued_tokens=load.queued_tokens,
        prefill_rate=1.0 / load.learned.seconds_per_token,
        blocks=residency.reported_blocks(replica),
        trusted=None if residency.standing(replica) == "none" else residency.trusted(replica),
    )


def _spell(address: tuple[object, ...]) -> str:
    host, port = str(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _quiet_collector() -> None:
    """What start-up made lives for ever: keep the cycle collector from walking it, and let it come less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
