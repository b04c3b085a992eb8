"""Settings come from a file and from flags; every mistake is told with the name of what to change."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from router.cli import serve
from router.config import ConfigError, ReplicaConfig, parse_replica, parse_tokenizer, read_config
from router.main import main


def test_flags_win_over_the_file_and_replicas_add_up(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(
        "policy: least_load\nattempts: 7\nreplicas:\n  - url: http://a:1\n    models: ['qwen/']\n    name: first\n"
    )
    config = read_config(path, {"policy": "random", "attempts": None, "replicas": [parse_replica("http://b:2")]})
    assert (config.policy, config.attempts) == ("random", 7)
    assert config.replicas == (ReplicaConfig("http://a:1", "first", ("qwen/",)), ReplicaConfig("http://b:2"))


def test_workers_share_a_tree_or_say_that_they_do_not(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("{workers: 4, private: true, control: 'h:65532'}\n")
    assert read_config(path, {"private": None}).private
    config = read_config(None, {"workers": 4, "redis": "redis://h:6379/0?namespace=prod"})
    assert (config.workers, config.private) == (4, False)


def test_replica_and_tokenizer_flags() -> None:
    assert parse_replica("http://a:1") == {"url": "http://a:1"}
    assert parse_replica("qwen/=http://a:1") == {"url": "http://a:1", "models": ["qwen/"]}
    assert parse_replica("http://a:1/?x=y") == {"url": "http://a:1/?x=y"}
    assert parse_tokenizer("/some/dir") == ("", "/some/dir")
    assert parse_tokenizer("m=/some/dir") == ("m", "/some/dir")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("policy: best", "--policy"),
        ("listen: nowhere", "--listen"),
        ("control: 'h:99999'", "--control"),
        ("attempts: 0", "--attempts"),
        ("read_timeout: -1", "--read-timeout"),
        ("polcy: kv", "polcy"),
        ("replicas: http://a", "replicas"),
        ("replicas: [{uri: http://a}]", "uri"),
        ("workers: 0", "--workers must be at least 1"),
        ("workers: 2", "--workers 2: workers share one tree: give --redis"),
        ("{workers: 3, private: true, control: 'h:65534'}", "--control h:65534: .* 3 workers"),
        ("redis: 'http://h:6379'", "--redis: "),
        ("redis: 7", "redis"),
        ("- a list", "mapping"),
        ("a: [", "YAML"),
    ],
)
def test_mistakes_name_what_to_change(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_config(path, {})


def test_an_empty_file_and_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert read_config(tmp_path / "empty.yaml", {}).policy == "kv"
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        read_config(tmp_path / "missing.yaml", {})


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--replica", "10.0.0.1:8000"], "http://HOST:PORT"),
        (["--replica", "http://a:1", "--replica", "http://a:1"], "two replicas"),
        (["--tokenizer", "/no/such/dir"], "tokenizer.json"),
        (["--listen", "0.0.0.0"], "--listen"),
        (["--policy", "best"], "kv"),
    ],
)
def test_serve_refuses_to_start_on_a_mistake(flags: list[str], says: str) -> None:
    ports = ["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"]
    result = CliRunner().invoke(serve, [*ports, *flags])
    assert result.exit_code != 0
    assert says in result.output


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flag, other in (("--listen", "--control"), ("--control", "--listen")):
            result = CliRunner().invoke(serve, [flag, f"127.0.0.1:{port}", other, "127.0.0.1:0"])
            assert result.exit_code == 1
            assert f"{flag} 127.0.0.1:{port}" in result.output


def test_help_teaches() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    for word in ("serve", "replica", "demo", "--replica http://"):
        assert word in text
    text = CliRunner().invoke(main, ["serve", "--help"]).output
    for word in ("[MODEL=]URL", "--workers", "--control + k", "Prometheus", "redis+sentinel://", "?namespace="):
        assert word in text


def test_an_unknown_command_is_told() -> None:
    result = CliRunner().invoke(main, ["server"])
    assert result.exit_code == 2
    assert "server" in result.output
