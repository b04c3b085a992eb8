"""A redis-server of one's own is found or missed with advice, keeps its port, and outlives nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadgen.redis_process import NoRedisServer, RedisServer, redis_server_binary
from tests.redis_server import admin, wait_until

OWNER = """
import sys
import tempfile
from collections.abc import Iterator
from loadgen.redis_process import RedisServer
with RedisServer() as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""


def test_without_a_redis_server_it_is_said_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(NoRedisServer, match="apt-get install redis-server"):
        redis_server_binary()


def test_one_beside_the_interpreter_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "redis-server").symlink_to("/bin/true")
    assert redis_server_binary() == str(tmp_path / "redis-server")


@pytest.mark.parametrize("persistent", [False, True])
def test_a_restart_keeps_the_port_and_what_was_persistent(persistent: bool) -> None:
    with RedisServer(persistent=persistent, password="pw") as server:
        port = server.port
        for end in (server.stop, server.kill):
            with admin(server) as client:
                client.incr("starts")
            end()
            assert not server.runs
            server.start()
        assert server.port == port
        with admin(server) as client:
            assert client.get("starts") == (b"2" if persistent else None)


def test_a_paused_server_can_be_ended() -> None:
    for end in (RedisServer.stop, RedisServer.kill, RedisServer.close):
        with RedisServer() as server:
            server.pause()
            end(server)
            assert not server.runs


def test_wrong_settings_are_shown_with_the_servers_own_words() -> None:
    with pytest.raises(Exception, match="no-such-setting"), RedisServer(settings=["no-such-setting yes"]):
        pass


@pytest.fixture
def folder() -> Iterator[str]:
    """With a path short enough for a socket in it."""
    with tempfile.TemporaryDirectory() as created:
        yield created


def test_where_temporary_files_have_too_long_a_path_for_a_socket_it_finds_another_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with RedisServer() as server:
        assert server.runs
        assert not list(deep.iterdir())


def test_it_dies_with_an_owner_that_could_clean_up_nothing(folder: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": folder},  # where its folder stays behind
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    wait_until(lambda: not is_alive(pid))
    owner.stdout.close()
    owner.stdin.close()


def is_alive(pid: int) -> bool:
    """A zombie that nobody has reaped yet is not."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
