"""Child processes: none outlives its owner, however the owner ends; failures come with the child's own words.

Each child holds a connection to the test, so that its end shows as the end of that connection, not as a guess in time.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import loadgen
from loadgen.processes import Child, ChildFailed, Children, free_ports

TIMEOUT_S = 20

# Says hello on a connection, then waits until it is told to go on, or ended.
HELLO = "import socket; s = socket.create_connection(('127.0.0.1', {port})); s.sendall(b'hello'); s.recv(1)"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT_S)
        yield server


def hello(listener: socket.socket) -> str:
    return HELLO.format(port=listener.getsockname()[1])


def greeted(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(TIMEOUT_S)
    assert connection.recv(5, socket.MSG_WAITALL) == b"hello"
    return connection


def gone(connection: socket.socket) -> bool:
    """Waits for the end of the process at the other side."""
    with connection:
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True


def test_children_end_when_the_run_raises(listener: socket.socket) -> None:
    started: list[tuple[Child, socket.socket]] = []

    def run() -> None:
        with Children() as children:
            started.append((children.start("one", ["-c", hello(listener)]), greeted(listener)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    ((child, connection),) = started
    assert child.process.returncode == -signal.SIGTERM
    assert gone(connection)
    assert not child.log.parent.exists()


def test_a_child_that_ignores_sigterm_is_killed(listener: socket.socket) -> None:
    with Children(grace_s=0.1) as children:
        stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + hello(listener)
        child = children.start("stubborn", ["-c", stubborn])
        connection = greeted(listener)
    assert child.process.returncode == -signal.SIGKILL
    assert gone(connection)


def test_what_a_child_started_ends_with_it(listener: socket.socket) -> None:
    with Children() as children:
        start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hello(listener)!r}])"
        children.start("parent", ["-c", start])
        grandchild = greeted(listener)
    assert gone(grandchild)


def owner(tmp_path: Path, listener: socket.socket, body: str) -> subprocess.Popen[bytes]:
    """A process of its own that owns a child which says hello."""
    script = tmp_path / "owner.py"
    start = f"children.start('one', ['-c', {hello(listener)!r}])"
    script.write_text(f"from loadgen.processes import Children\n{textwrap.dedent(body).replace('START', start)}")
    environment = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(loadgen.__file__).parents[1])}
    return subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL, env=environment)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_children_end_when_their_owner_is_killed_outright(tmp_path: Path, listener: socket.socket) -> None:
    body = """
    import signal
    with Children() as children:
        START
        signal.pause()
    """
    process = owner(tmp_path, listener, body)
    connection = greeted(listener)
    process.kill()
    process.wait(TIMEOUT_S)
    assert gone(connection)


def test_children_and_their_logs_end_on_ctrl_c(tmp_path: Path, listener: socket.socket) -> None:
    body = """
    import asyncio
    async def main():
        with Children() as children:
            START
            await children.watch()
    asyncio.run(main())
    """
    process = owner(tmp_path, listener, body)
    connection = greeted(listener)
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT_S) != 0
    assert gone(connection)
    assert [path.name for path in tmp_path.iterdir()] == ["owner.py"]


async def test_a_child_that_dies_is_reported_with_the_end_of_its_log() -> None:
    with Children() as children:
        children.start("broken", ["-c", "import sys; print('no such model'); sys.exit(3)"])
        with pytest.raises(ChildFailed, match=r"broken ended with exit code 3(.|\n)*no such model"):
            await asyncio.wait_for(children.watch(), TIMEOUT_S)


async def test_readiness_waits_for_the_answer_that_is_asked_for(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    (tmp_path / "state").write_text("ready")
    with Children() as children:
        serve = ["-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
        server = children.start("server", serve)
        url = f"http://127.0.0.1:{port}"
        assert await children.until_ready(server, f"{url}/state", TIMEOUT_S) == b"ready"
        with pytest.raises(ChildFailed, match=r"server was not ready within 0.3 s; .*404(.|\n)*GET /missing"):
            await children.until_ready(server, f"{url}/missing", 0.3)
        with pytest.raises(ChildFailed, match="HTTP 200: ready"):
            await children.until_ready(server, f"{url}/state", 0.3, lambda body: body == b"else")


async def test_readiness_gives_up_at_once_when_a_child_dies() -> None:
    (port,) = free_ports(1)
    with Children() as children:
        child = children.start("broken", ["-c", "raise SystemExit('cannot start')"])
        with pytest.raises(ChildFailed, match="cannot start"):
            await children.until_ready(child, f"http://127.0.0.1:{port}", TIMEOUT_S)


def test_free_ports_differ() -> None:
    assert len(set(free_ports(50))) == 50
