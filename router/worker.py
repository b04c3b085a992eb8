"""One router process, alone or as one of several workers: runs a Router from its start to its drained end.

Owns the event loop, and what makes the process stop: SIGTERM, SIGINT, or its parent's end. Must never start or watch
another process: `workers.py` does.

`python -m router.worker NUMBER` is a worker. It lives as long as its stdin is open (see `workers.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable

import msgspec
import uvloop

from router.app import Router
from router.config import ConfigError, ServeConfig
from router.workers import Failed, Job, Ready, Report

Started = Callable[[str, str], None]


def run(config: ServeConfig, started: Started, leash: int | None = None) -> None:
    """Serve until SIGTERM, SIGINT or the end of the pipe `leash`; then drain.

    Calls `started(data address, control address)` when it serves. Raises ConfigError when it cannot.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, started, leash))


async def _serve(config: ServeConfig, started: Started, leash: int | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if leash is not None:
        loop.add_reader(leash, _pulled, loop, leash, stop)
    router = Router(config)
    await router.start()
    started(router.listen_address, router.control_address)
    await stop.wait()
    await router.stop()


def _pulled(loop: asyncio.AbstractEventLoop, leash: int, stop: asyncio.Event) -> None:
    if not os.read(leash, 1024):
        loop.remove_reader(leash)
        logging.getLogger("radixgate").warning("the parent process is gone: draining")
        stop.set()


def main() -> None:
    """A worker's process: its job comes from stdin, its one report goes to stdout."""
    line = sys.stdin.buffer.readline()
    if not line:  # the parent ended meanwhile
        sys.exit(1)
    job = msgspec.json.decode(line, type=Job)
    reports = os.dup(1)
    os.dup2(2, 1)  # what else is printed here must not look like a report
    name = f"worker {job.number}"
    logging.basicConfig(level=job.log_level, format=f"%(asctime)s %(levelname)s {name} %(name)s: %(message)s")
    try:
        run(job.config, lambda listen, control: _report(reports, Ready(listen, control)), sys.stdin.fileno())
    except ConfigError as error:
        _report(reports, Failed(str(error)))
        sys.exit(1)


def _report(pipe: int, report: Report) -> None:
    try:
        os.write(pipe, msgspec.json.encode(report) + b"\n")
    except BrokenPipeError:
        pass  # the parent is gone, which the leash tells too


if __name__ == "__main__":
    main()
