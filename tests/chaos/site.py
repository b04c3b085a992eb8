"""A whole site of real processes that share one tree, with the levers to break each of them.

Redis; three routers, `r0` to `r2`; four replicas that differ in how they report:

- `direct`: to Redis; `double`: to Redis and to router r1;
- `wired`: to Redis, over a wire that can be cut; `posted`: to router r0, by a post that can lose and shuffle.
"""

from __future__ import annotations

import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from loadgen.fleet import RADIXGATE
from loadgen.processes import Child, Children
from loadgen.redis_process import RedisServer
from tests.chaos.background import Background
from tests.chaos.fates import Outage
from tests.chaos.inquiry import Inquiry
from tests.chaos.load import MODEL, Load
from tests.chaos.proxies import Post, Wire

WAIT_S = 60.0  # for what must happen
POLL_S = 0.1
# Below the range from which the kernel takes ports for outgoing connections: a dead process' port stays free for it.
PORTS = range(22_000, 32_000)
ROUTERS = ("r0", "r1", "r2")
REPLICAS = ("direct", "double", "wired", "posted")
SIZE = ("--kv-blocks", "256")  # a few of the documents that are asked about: blocks come and go all the time


class Site:
    """A context: inside it everything runs, and is whole at first."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._stack = ExitStack()
        self._running: dict[str, Child] = {}
        self._starts = 0
        self._outages: list[Outage] = []
        self._load: Load | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.background = stack.enter_context(Background())
            # Redis may put off writing for two seconds while it waits for the disk, unless it never waits for it.
            self.redis = stack.enter_context(RedisServer(persistent=True, settings=["appendfsync no"]))
            self._children = stack.enter_context(Children())
            ports = iter(free_ports(2 * len(ROUTERS) + len(REPLICAS)))
            self.urls = {name: f"http://127.0.0.1:{next(ports)}" for name in (*ROUTERS, *REPLICAS)}
            self.controls = {name: f"http://127.0.0.1:{next(ports)}" for name in ROUTERS}
            self.wire = Wire(self.background, self.redis.port)
            stack.callback(self.wire.close)
            self.post = Post(self.background, self.controls["r0"], self.seed)
            stack.callback(self.post.close)
            replicas = {name: self.urls[name] for name in REPLICAS}
            self.inquiry = Inquiry(self.background, self.redis.url, self.controls, replicas)
            stack.callback(self.inquiry.close)
            self.start(*ROUTERS, *REPLICAS)
            self.until_whole()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # Processes.

    def start(self, *names: str) -> None:
        for name in names:
            if self._load is not None and name in ROUTERS:
                self.wait_until(partial(self._load.is_aside, name))  # else clients meet it before it is ready
            self._starts += 1
            command = self._router(name) if name in ROUTERS else self._replica(name)
            self._running[name] = self._children.start(f"{name}-{self._starts}", [*RADIXGATE, *command])

    def kill(self, *names: str) -> None:
        """SIGKILL. From now on the clients may see what a dead process leaves behind, until it `serves_again`."""
        for name in names:
            self._outages.append(Outage(name, time.monotonic()))
            child = self._running.pop(name)
            child.signal_group(signal.SIGKILL)
            child.process.wait()

    def serves_again(self, *names: str) -> None:
        """Waits until these, killed and started, are ready for requests; clients come back to them."""
        for name in names:
            self.wait_until(partial(self.inquiry.ready, name))
            for outage in self._outages:
                if outage.of == name:
                    outage.ended = min(outage.ended, time.monotonic())
            if self._load is not None and name in ROUTERS:
                self._load.welcome(name)

    @contextmanager
    def extra(self, name: str) -> Iterator[None]:
        """One more replica, which reports to Redis; `end` it within the context."""
        (port,) = free_ports(1)
        self.urls[name] = f"http://127.0.0.1:{port}"
        self.start(name)
        self.wait_until(lambda: all(name in self.inquiry.fleet(router) for router in ROUTERS))
        try:
            yield
        finally:
            if name in self._running:
                self.kill(name)
            del self.urls[name]

    def end(self, name: str) -> None:
        """SIGTERM: it takes leave."""
        child = self._running.pop(name)
        child.signal_group(signal.SIGTERM)
        child.process.wait(WAIT_S)

    def pause(self, name: str) -> None:
        self._running[name].signal_group(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self._running[name].signal_group(signal.SIGCONT)

    def check(self) -> None:
        """Raises ChildFailed when a process died that nobody killed."""
        for child in self._running.values():
            child.check()

    # The data of Redis.

    def copy_of_redis(self) -> Path:
        """What is on its disk now, to go back to."""
        copy = self.redis.directory / f"copy-{time.monotonic_ns()}"
        shutil.copytree(self._data, copy)
        return copy

    def forget_redis(self, copy: Path | None = None) -> None:
        """Kills Redis, and leaves it no data but those of the copy."""
        self.redis.kill()
        shutil.rmtree(self._data)
        if copy is not None:
            shutil.copytree(copy, self._data)

    @property
    def _data(self) -> Path:
        return self.redis.directory / "appendonlydir"

    # A trial.

    @contextmanager
    def under_load(self) -> Iterator[Load]:
        """Requests flow through every router. At the end, when the site is whole again and the requests have ended:
        none has failed, and everybody knows exactly what each replica holds.
        """
        self._outages = []
        load = self._load = Load(self.background, {name: self.urls[name] for name in ROUTERS}, self.seed)
        load.start()
        try:
            self.flow(least=1)
            yield load
            self.until_whole()
            self.wait_until(self.inquiry.warm)
            self.flow(least=1)
        finally:
            self._load = None
            self._wake()  # else what failed in between may keep the clients waiting
            load.finish()
        failures = load.failures(self._outages)
        assert not failures, "\n".join([*map(str, failures), self._logs()])
        self.audit()

    def flow(self, seconds: float = 0.0, *routers: str, least: int = 2) -> None:
        """Lets the requests flow for a while, and sees that each of these routers (all) goes on answering."""
        assert self._load is not None
        self._load.go_on(routers or ROUTERS, seconds, least, self.check)

    def until_whole(self) -> None:
        """Until every router is in step with Redis and believes every replica's reports, and Redis has all of them."""
        self.wait_until(lambda: not self.missing(), lambda: self.missing())

    def until_noticed(self, before: Mapping[str, float]) -> None:
        """Until every router has read the tree anew since it had done so `before` times, and the site is whole."""
        self.wait_until(lambda: all(count > before[name] for name, count in self.inquiry.resyncs().items()))
        self.until_whole()

    def missing(self) -> str:
        self.check()
        return self.inquiry.missing()

    def audit(self) -> None:
        """`radixgate audit` finds every replica known everywhere, and not one block amiss.

        A replica that could not report for a while pauses before it tries again, and learns that Redis went back in
        time when it renews its lease. Until then it is behind, which is no fault, and ends.
        """
        self.wait_until(lambda: not self.inquiry.unreported(), self.inquiry.unreported)
        self.inquiry.audit()

    def wait_until(self, condition: Callable[[], bool], why: Callable[[], str] = str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            self.check()
            if time.monotonic() >= deadline:
                raise AssertionError(f"it did not happen in time. {why()}\n{self._logs()}")
            time.sleep(POLL_S)

    def _logs(self) -> str:
        return "\n".join(f"--- {name}\n{child.log_tail()}" for name, child in self._running.items())

    def mend(self) -> None:
        """Whatever a trial that failed has left behind."""
        if not self.redis.runs:
            self.redis.start()
        self._wake()
        self.wire.mend()
        self.post.mischief = False
        for name in (*ROUTERS, *REPLICAS):
            child = self._running.get(name)
            if child is None or child.process.poll() is not None:
                self.start(name)
        self.until_whole()

    def _wake(self) -> None:
        if self.redis.runs:
            self.redis.resume()
        for name in self._running:
            self.resume(name)

    def _router(self, name: str) -> list[str]:
        listen, control = (url.removeprefix("http://") for url in (self.urls[name], self.controls[name]))
        ports = ["--listen", listen, "--control", control]
        return ["serve", *ports, "--redis", self.redis.url, "--health-interval", "0.5", "--seed", str(self.seed)]

    def _replica(self, name: str) -> list[str]:
        ways = {
            "direct": ["--report", self.redis.url],
            "double": ["--report", self.redis.url, "--join", self.controls["r1"]],
            "wired": ["--report", f"redis://127.0.0.1:{self.wire.port}/0"],
            "posted": ["--join", f"http://127.0.0.1:{self.post.port}"],
        }
        way = ways.get(name, ways["direct"])
        listen = ["--listen", self.urls[name].removeprefix("http://")]
        return ["replica", "--name", name, "--served-model-name", MODEL, *listen, *SIZE, *way]


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens now; all different."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"fewer than {count} free ports from {PORTS.start} to {PORTS.stop - 1}")
