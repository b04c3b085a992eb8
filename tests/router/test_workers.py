"""`serve --workers N` with real processes: one port, several routers, and a parent that keeps them until it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from loadgen.processes import Children, free_ports
from router.cli import serve
from tests.router.harness import WAIT_S, Client, Peer, Upstream, chat, get_json, hello, upstream, wait_until

ANNOUNCED = re.compile(
    r"^radixgate serving on http://127\.0\.0\.1:(\d+) \(policy kv, 2 workers\), control on (.+)$", re.M
)


class Site:
    """Two workers and their parent, which have announced themselves."""

    def __init__(self, children: Children, *flags: str) -> None:
        common = ["--workers", "2", "--private", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"]
        self.parent = children.start("serve", ["-m", "router.main", "serve", *common, *flags])
        wait_until(lambda: bool(ANNOUNCED.search(self.log())))
        (announced,) = ANNOUNCED.finditer(self.log())
        self.port = int(announced[1])
        self.controls = announced[2].split(", ")

    def log(self) -> str:
        self.parent.check()
        return self.parent.log.read_text()

    def pids(self) -> dict[int, int]:
        """The process of each worker that is alive, by its number."""
        return workers_of(self.parent.process.pid)

    def ready(self, number: int) -> bool:
        try:
            return httpx.get(self.controls[number] + "/healthz/ready", timeout=WAIT_S).status_code == 200
        except httpx.TransportError:
            return False

    def handled(self, number: int) -> set[str]:
        """The requests that this worker routed, by their ids."""
        return {receipt["request_id"] for receipt in get_json(self.controls[number] + "/receipts")["receipts"]}

    @contextmanager
    def clients(self, count: int) -> Iterator[list[Client]]:
        with ExitStack() as stack:
            yield [stack.enter_context(Client(self.port)) for _ in range(count)]


def workers_of(parent: int) -> dict[int, int]:
    found = {}
    for task in Path(f"/proc/{parent}/task").iterdir():
        for pid in (task / "children").read_text().split():
            command = _read(f"/proc/{pid}/cmdline").split("\0")
            if "router.worker" in command:
                found[int(command[command.index("router.worker") + 1])] = int(pid)
    return found


def alive(pid: int) -> bool:
    stat = _read(f"/proc/{pid}/stat")
    return bool(stat) and stat.rpartition(")")[2].split()[0] != "Z"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # it ended meanwhile
        return ""


def ask(client: Client) -> str:
    """The id of a request that was answered well on this connection."""
    client.post(chat())
    status, headers, _ = client.response()
    assert status == 200
    return headers["x-request-id"]


def two_free_ports() -> int:
    """The lower one of two neighbours."""
    while True:
        (port,) = free_ports(1)
        with socket.socket() as next_one:
            try:
                next_one.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


class Held:
    """An upstream that keeps every answer until `release` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def __call__(self, peer: Peer, head: bytes, body: bytes) -> None:
        self.release.wait(WAIT_S)
        hello(peer, head, body)


@pytest.fixture
def replica() -> Iterator[Upstream]:
    with upstream(hello) as server:
        yield server


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as started:
        yield started


@pytest.fixture(scope="module")
def base() -> int:
    return two_free_ports()


@pytest.fixture(scope="module")
def warm(base: int) -> Iterator[Site]:
    """Shared by the tests that leave it as it is."""
    with upstream(hello) as replica, Children() as children:
        yield Site(children, "--control", f"127.0.0.1:{base}", "--replica", replica.url)


def test_every_worker_gets_connections_and_counts_its_own(warm: Site) -> None:
    with warm.clients(40) as clients:
        asked = {ask(client) for client in clients}
    shares = [warm.handled(number) for number in (0, 1)]
    assert all(shares)
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == asked
    assert [routed(control) for control in warm.controls] == [len(share) for share in shares]


def routed(control: str) -> float:
    text = httpx.get(control + "/metrics", timeout=WAIT_S).text
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("radixgate_routed_total{")
    )


def test_a_worker_that_dies_is_replaced_while_the_others_serve(children: Children, replica: Upstream) -> None:
    site = Site(children, "--replica", replica.url)
    with site.clients(24) as clients:
        asked = {ask(client): client for client in clients}
        others = [asked[request] for request in site.handled(1)]
        assert others
        for number in (signal.SIGKILL, signal.SIGTERM):  # a crash, and an operator who wants a fresh one
            replace_first_worker(site, number, others)
    ends = re.findall(r"worker 0 .*(SIGKILL|exit code 0); starting it again in (\S+) s", site.log())
    assert ends == [("SIGKILL", "0.1"), ("exit code 0", "0.2")]


def replace_first_worker(site: Site, number: signal.Signals, others: list[Client]) -> None:
    """Ends worker 0 by a signal and waits for the next one. `others`: connections that the other worker has."""
    first = site.pids()[0]
    os.kill(first, number)
    wait_until(lambda: not Path(f"/proc/{first}").exists())  # a process that is only dying still listens

    def new_connections_reach_the_next_one() -> bool:
        with site.clients(6) as fresh:
            for client in [*others, *fresh]:
                ask(client)  # no new connection meets a worker that does not know its replicas yet
        return site.ready(0) and bool(site.handled(0))

    wait_until(new_connections_reach_the_next_one)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_every_worker(children: Children, number: signal.Signals) -> None:
    script = Held()
    with upstream(script) as replica:
        site = Site(children, "--replica", replica.url)
        with site.clients(12) as clients:
            for client in clients:
                client.post(chat())
            for _ in clients:
                replica.requests.get(timeout=WAIT_S)
            pids = site.pids()
            assert len(pids) == 2
            site.parent.signal_group(number)  # as Ctrl-C does
            wait_until(lambda: refuses(site.port))
            script.release.set()
            assert [client.response()[0] for client in clients] == [200] * len(clients)
        assert site.parent.process.wait(WAIT_S) == 0
        assert not any(alive(pid) for pid in pids.values())
        assert "Traceback" not in site.parent.log.read_text()


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), WAIT_S).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it was let in just before the port closed
        return False
    return False


def test_a_second_signal_ends_all_at_once(children: Children) -> None:
    script = Held()
    with upstream(script) as replica:
        site = Site(children, "--replica", replica.url, "--drain-timeout", "1000")
        with Client(site.port) as client:
            client.post(chat())
            replica.requests.get(timeout=WAIT_S)
            pids = site.pids()

            def insist() -> bool:
                site.parent.process.send_signal(signal.SIGTERM)
                return site.parent.process.poll() is not None

            wait_until(insist)
            assert site.parent.process.returncode != 0
            assert not any(alive(pid) for pid in pids.values())
            script.release.set()  # the upstream's own threads end


def test_workers_whose_parent_was_killed_drain_and_end(children: Children) -> None:
    script = Held()
    with upstream(script) as replica:
        site = Site(children, "--replica", replica.url)
        with Client(site.port) as client:
            client.post(chat())
            replica.requests.get(timeout=WAIT_S)
            pids = site.pids()
            site.parent.process.kill()
            site.parent.process.wait()
            wait_until(lambda: refuses(site.port))
            script.release.set()
            assert client.response()[0] == 200
            wait_until(lambda: not any(alive(pid) for pid in pids.values()))


def start(*flags: str) -> tuple[int, str]:
    """Exit code and output of a start that fails, in this process."""
    result = CliRunner().invoke(serve, ["--control", "127.0.0.1:0", *flags])
    # The event loops word the same mistake differently.
    return result.exit_code, re.sub(r"(error while .*: )?[Aa]ddress already in use", "in use", result.output)


def in_use(flag: str, address: str) -> tuple[int, str]:
    return 1, f"Error: {flag} {address}: in use\n"


def test_the_data_port_is_shared_with_nobody_else(warm: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        assert start("--workers", "2", "--private", "--listen", taken) == in_use("--listen", taken)
    taken = f"127.0.0.1:{warm.port}"
    assert start("--workers", "2", "--private", "--listen", taken) == in_use("--listen", taken)
    assert start("--listen", taken) == in_use("--listen", taken)


def test_worker_k_has_the_control_port_plus_k(warm: Site, base: int) -> None:
    assert warm.controls == [f"http://127.0.0.1:{base}", f"http://127.0.0.1:{base + 1}"]
    assert all(get_json(control + "/healthz/live") == {"live": True} for control in warm.controls)


def test_a_taken_control_port_of_any_worker_ends_all() -> None:
    base = two_free_ports()
    with socket.create_server(("127.0.0.1", base + 1)):
        flags = ["--workers", "2", "--private", "--listen", "127.0.0.1:0", "--control", f"127.0.0.1:{base}"]
        assert start(*flags) == in_use("--control", f"127.0.0.1:{base + 1}")
    assert workers_of(os.getpid()) == {}


def test_a_worker_that_never_gets_ready_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif 'router.worker' in sys.orig_argv: os._exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, said = start("--workers", "2", "--private", "--listen", "127.0.0.1:0")
    assert code == 1
    assert re.search(r"Error: worker \d \(process \d+\) ended with exit code 3 before it was ready", said)


def test_the_parent_does_not_load_the_router() -> None:
    code = "import sys, router.cli, router.workers; print({'router.app', 'uvloop', 'redis'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "set()"
