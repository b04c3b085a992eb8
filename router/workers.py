"""`serve --workers N`: N router processes on one data port, each kept running by a parent that serves nothing itself.

Owns the parent's side: the port that the workers share, starting them, starting again those that end, and what a
signal means. `worker.py` is what runs in each of them. Must never import the router itself, nor see a request: the
kernel hands each new connection to one of the workers (SO_REUSEPORT).

A worker gets its job as one line of JSON on its stdin, and answers with one line on its stdout, Ready or Failed. The
parent then keeps that stdin open: its end is how a worker learns that the parent is gone, however it went.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import msgspec

from router.config import ConfigError, ServeConfig, parse_address, spell_address

log = logging.getLogger("radixgate.workers")

FIRST_PAUSE_S = 0.1  # before a worker that ended is started again; doubled each time
LAST_PAUSE_S = 5.0
STEADY_S = 10.0  # one that ran this long starts again after the first pause
GRACE_S = 10.0  # beyond the drain timeout, before a worker that hangs is killed
ECHO_S = 0.5  # Ctrl-C under a wrapper that passes it on arrives twice: within this time it is one signal


class Job(msgspec.Struct, frozen=True):
    """What a worker is told: its number from 0, the level of its log, and the configuration made its own."""

    number: int
    log_level: int
    config: ServeConfig


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker serves at these addresses."""

    listen: str
    control: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The worker cannot serve; the message says what to change."""

    message: str


Report = Ready | Failed
Announce = Callable[[str, Sequence[str]], None]


class WorkerFailed(RuntimeError):
    """A worker ended before it had ever been ready."""


async def supervise(config: ServeConfig, announce: Announce) -> bool:
    """Serve with `config.workers` processes until SIGTERM or SIGINT. True: all drained; False: some had to be killed.

    Calls `announce(data address, control addresses)` once, when all are ready for the first time. Raises ConfigError
    when an address is taken or a worker refuses its configuration, WorkerFailed when one ends before it was ready.
    """
    with held_port(config.listen) as listen:
        jobs = [_job(config, number, listen) for number in range(config.workers)]
        supervisor = Supervisor(jobs, config.drain_timeout, announce)
        await supervisor.run()
    return not supervisor.killed


@contextmanager
def held_port(listen: str) -> Iterator[str]:
    """Holds the data port without listening, so that nobody else takes it. Yields `listen` with the port's number.

    Raises ConfigError when anybody has it already, be it a radixgate whose workers would share it.
    """
    host, port = parse_address(listen, "--listen")
    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, _, _, address in dict.fromkeys(found):
                sock = stack.enter_context(socket.socket(family))
                _bind(sock, (address[0], port, *address[2:]))
                port = sock.getsockname()[1]
        except OSError as error:
            raise ConfigError(f"--listen {listen}: {error.strerror or error}") from None
        yield spell_address(host, port)


class Supervisor:
    """The workers of one parent. `run` them; a signal drains all, a second one kills them."""

    def __init__(self, jobs: Sequence[Job], drain_timeout_s: float, announce: Announce) -> None:
        self._workers = [Worker(job, self._one_is_ready) for job in jobs]
        self._drain_timeout_s = drain_timeout_s
        self._announce: Announce | None = announce
        self._stopped_at: float | None = None
        self._loop: asyncio.AbstractEventLoop
        self.killed = False

    async def run(self) -> None:
        """Until all have ended. When one cannot be kept, ends the others and raises what that one raised."""
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._signalled)
        tasks = [self._loop.create_task(worker.keep()) for worker in self._workers]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if self._stopped_at is None:
            self._stop()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _one_is_ready(self) -> None:
        if self._announce is not None and all(worker.ready for worker in self._workers):
            self._announce(self._workers[0].listen, [worker.control for worker in self._workers])
            self._announce = None

    def _signalled(self) -> None:
        if self._stopped_at is None:
            self._stop()
        elif self._loop.time() - self._stopped_at > ECHO_S:
            log.warning("a second signal: ending all workers at once")
            self._kill()

    def _stop(self) -> None:
        self._stopped_at = self._loop.time()
        for worker in self._workers:
            worker.stop()
        self._loop.call_later(self._drain_timeout_s + GRACE_S, self._kill)  # nothing waits for ever for one that hangs

    def _kill(self) -> None:
        for worker in self._workers:
            self.killed = worker.signal(signal.SIGKILL) or self.killed


class Worker:
    """The place of one worker: a process, and after its end the next one, at the same addresses."""

    def __init__(self, job: Job, on_ready: Callable[[], None]) -> None:
        self._job = job
        self._on_ready = on_ready
        self._process: asyncio.subprocess.Process | None = None
        self._failure = ""
        self._stopping = asyncio.Event()
        self.listen = ""
        self.control = ""

    @property
    def ready(self) -> bool:
        """Whether it has ever been."""
        return bool(self.control)

    def stop(self) -> None:
        """Let it drain and end."""
        self._stopping.set()
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> bool:
        """Whether there was a process to signal."""
        if self._process is None or self._process.returncode is not None:
            return False
        try:
            # Not Process.send_signal: it may reap the process before the loop does, which then knows no exit code.
            os.kill(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True

    async def keep(self) -> None:
        """Keep it running until `stop`. Raises ConfigError or WorkerFailed if the first process never gets ready."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            begun = loop.time()
            how = await self._live()
            if self._stopping.is_set():
                return
            if not self.ready:
                raise ConfigError(self._failure) if self._failure else WorkerFailed(f"{how} before it was ready")
            if loop.time() - begun > STEADY_S:
                pause = FIRST_PAUSE_S
            log.warning("%s; starting it again in %g s", how, pause)
            await self._pause(pause)
            pause = min(2 * pause, LAST_PAUSE_S)

    async def _live(self) -> str:
        """One process, from its start to its end. Returns how it ended."""
        number, self._failure = self._job.number, ""
        try:
            process = await _start(number)
        except OSError as error:  # too little memory, too many processes: it may pass
            return f"worker {number} could not be started ({error.strerror or error})"
        self._process = process
        if self._stopping.is_set():  # while it was being started
            process.terminate()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(self._job) + b"\n")  # fits into the pipe
        async for line in process.stdout:
            self._hear(msgspec.json.decode(line, type=Report), process.pid)
        code = await process.wait()
        process.stdin.close()
        return f"worker {number} (process {process.pid}) {_ending(code)}" + (self._failure and f": {self._failure}")

    def _hear(self, report: Report, pid: int) -> None:
        if isinstance(report, Failed):
            self._failure = report.message
            return
        self.listen, self.control = report.listen, report.control
        # The next process gets the same control port, even where this one chose it.
        config = msgspec.structs.replace(self._job.config, control=self.control)
        self._job = msgspec.structs.replace(self._job, config=config)
        log.info("worker %d (process %d) is ready, control on http://%s", self._job.number, pid, self.control)
        self._on_ready()

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            pass


def _job(config: ServeConfig, number: int, listen: str) -> Job:
    host, port = parse_address(config.control, "--control")
    own = msgspec.structs.replace(
        config,
        listen=listen,
        control=spell_address(host, port + number if port else 0),
        seed=None if config.seed is None else config.seed + number,  # equal ones would break every tie alike
    )
    return Job(number, logging.getLogger().getEffectiveLevel(), own)


async def _start(number: int) -> asyncio.subprocess.Process:
    """A process of its own session: a terminal's Ctrl-C reaches only the parent, which ends the workers in order."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "router.worker", str(number)),  # the number is for those who read `ps`
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # the same code as here, wherever this came from
    )


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _bind(sock: socket.socket, address: tuple[object, ...]) -> None:
    """Bind so that only sockets with SO_REUSEPORT, which the workers set, can share the port from now on.

    The options count at the time of a bind, here or elsewhere. Without any, this one meets every other user of the
    port; SO_REUSEADDR, if needed, overlooks connections of a server that has just ended, but nobody who listens.
    """
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as the workers' listening sockets
    try:
        sock.bind(address)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
