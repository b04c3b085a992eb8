"""Child processes that never outlive their owner, and that say what went wrong when they fail.

Owns starting, watching and ending them. Must never know what they run: `fleet.py` does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

LEASH = Path(__file__).with_name("leash.py")
GRACE_S = 3.0
POLL_S = 0.05
PROBE_S = 2.0
LOG_TAIL_BYTES = 2000
SAID_BYTES = 300


class ChildFailed(RuntimeError):
    """A child died or did not become ready in time; the message holds the end of its log."""


class NotYet(Exception):
    """An answer that is not the one waited for; the message says what it was."""


class Child:
    """One running process; `log` receives its stdout and stderr. Once it `may_end`, its end is nobody's failure."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log
        self.may_end = False

    def log_tail(self) -> str:
        text = self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return text or "(its log is empty)"

    def check(self) -> None:
        """Raises ChildFailed if the process has ended."""
        code = self.process.poll()
        if code is not None:
            raise ChildFailed(f"{self.name} ended with exit code {code}. The end of its log:\n{self.log_tail()}")

    def signal_group(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # the whole group is gone already, which some systems call a lack of permission


class Children:
    """A context that ends every process started in it, by SIGTERM and after a grace by SIGKILL, however it is left.

    Each child leads a session of its own, so that Ctrl-C in a terminal reaches only us and we end them in order.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._children: list[Child] = []
        self._directory = tempfile.TemporaryDirectory(prefix="radixgate-", ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, name: str, arguments: Sequence[str]) -> Child:
        """Starts `python ARGUMENTS` with the running interpreter. `name` must be unique among the children.

        Call it from the main thread: the kernel ends a leashed child with the thread that started it.
        """
        return self.start_program(name, [sys.executable, *arguments])

    def start_program(self, name: str, program: Sequence[str]) -> Child:
        """The same for any program, by its path, and its arguments."""
        log = Path(self._directory.name, f"{name}.log")
        command = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), *program]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def named(self, name: str) -> Child | None:
        return next((child for child in self._children if child.name == name), None)

    def check(self) -> None:
        """Raises ChildFailed if any child has ended that must not."""
        for child in self._children:
            if not child.may_end:
                child.check()

    async def watch(self) -> None:
        """Returns never; raises ChildFailed soon after a child has ended."""
        while True:
            self.check()
            await asyncio.sleep(POLL_S)

    async def until_ready(
        self, child: Child, url: str, timeout_s: float, ready: Callable[[bytes], bool] = lambda body: True
    ) -> bytes:
        """Polls `url` until it answers 200 with a body that satisfies `ready`, and returns that body.

        Raises ChildFailed when any child dies meanwhile, or when `timeout_s` have passed.
        """

        async def ask(http: aiohttp.ClientSession) -> bytes:
            async with http.get(url) as response:
                body = await response.read()
                if response.status == 200 and ready(body):
                    return body
                raise NotYet(said(response, body))

        return await self.until_answered(child, ask, f"was not ready within {timeout_s:g} s; {url}", timeout_s)

    async def until_answered(
        self,
        child: Child,
        ask: Callable[[aiohttp.ClientSession], Awaitable[bytes]],
        otherwise: str,
        timeout_s: float,
        probe_s: float = PROBE_S,
    ) -> bytes:
        """Repeats `ask`, for `probe_s` at most each, until it no longer raises NotYet or fails; what it answered.

        Raises ChildFailed when any child dies meanwhile, or, with `otherwise`, when `timeout_s` have passed.
        """
        deadline = time.monotonic() + timeout_s
        last = "no answer yet"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=probe_s)) as http:
            while time.monotonic() < deadline:
                self.check()
                try:
                    return await ask(http)
                except NotYet as answer:
                    last = str(answer)
                except (aiohttp.ClientError, OSError) as error:
                    last = f"{type(error).__name__}: {error}"
                await asyncio.sleep(POLL_S)
        raise ChildFailed(f"{child.name} {otherwise} said: {last}. The end of its log:\n{child.log_tail()}")

    def close(self) -> None:
        """Ends all children and forgets their logs. Blocks for the grace at the most; safe to call twice."""
        try:
            for child in self._children:
                child.signal_group(signal.SIGTERM)
            deadline = time.monotonic() + self._grace_s
            for child in self._children:
                _wait(child.process, deadline - time.monotonic())
        finally:
            for child in self._children:
                child.signal_group(signal.SIGKILL)
                child.process.wait()
            self._children.clear()
            self._directory.cleanup()


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    try:
        process.wait(max(0.0, timeout_s))
    except subprocess.TimeoutExpired:
        pass  # SIGKILL follows


def said(response: aiohttp.ClientResponse, body: bytes) -> str:
    """An answer in a line."""
    return f"HTTP {response.status}: {body[:SAID_BYTES].decode(errors='replace')}"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nothing listens on now; all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
