"""`radixgate replica` as a process: it says when it is ready, ends cleanly, and names the flag that is wrong."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import httpx
import msgspec
import pytest
from click.testing import CliRunner

from radix.events import Registration, decode_snapshot
from radix.redis_link import open_link
from radix.redis_tree import RedisTree
from replica.cli import replica
from replica.reuse import EVICTIONS
from replica.settings import SIMULATED_KV_BLOCKS, Settings
from tests.redis_server import RedisServer
from tests.replica.test_reporter import Control

WAIT_S = 10.0
QUICK = ("--step-ms", "1", "--prefill-rate", "1e6")


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A replica process and its ready line."""
    command = [sys.executable, "-m", "replica.cli", "--listen", "127.0.0.1:0", *QUICK, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            yield child, child.stdout.readline().strip()
        finally:
            child.kill()


def wrong(arguments: Sequence[str]) -> str:
    """What is said about the arguments, which must be refused."""
    result = CliRunner().invoke(replica, arguments)
    assert result.exit_code in (1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return " ".join(result.output.replace("\n", " ").split())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_told_to_end(number: signal.Signals) -> None:
    with process("--name", "r1", "--served-model-name", "tiny", "--drain-timeout", "0.1") as (child, ready):
        before, url = ready.rsplit(" ", 1)
        assert before == "replica r1 serving tiny on"
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": True,
            "max_tokens": 30_000,
        }
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            child.send_signal(number)
            *_, error, done = [line for line in lines if line]
        assert "shutting down" in error
        assert done == "data: [DONE]"
        assert child.wait(10) == 0
        assert child.stderr is not None
        assert "Traceback" not in child.stderr.read()


async def test_it_joins_a_router_and_leaves_it() -> None:
    control = Control()
    async with control.listening() as port:
        arguments = ("--name", "r/1", "--join", f"http://127.0.0.1:{port}", "--advertise", "http://10.1.2.3:80")
        with process(*arguments, "--kv-tokens", "1000", "--block-size", "8") as (child, ready):
            said = await control.registrations.get()
            async with httpx.AsyncClient(base_url=ready.rsplit(" ", 1)[1]) as http:
                info = await http.get("/radixgate/info")
            assert msgspec.json.decode(info.content, type=Registration) == said
            assert (said.url, said.block_size, said.capacity_blocks) == ("http://10.1.2.3:80", 8, 125)
            assert said.max_model_len == 1000
            assert (Path(said.tokenizer) / "tokenizer.json").is_file()
            assert said.tokenizer_fingerprint
            child.terminate()
            assert await control.left.get() == str(said.epoch)
            assert await asyncio.to_thread(child.wait, 10) == 0


async def test_it_reports_to_a_redis_and_leaves_it() -> None:
    with RedisServer() as server:
        link = open_link(f"{server.url}?namespace=prod")
        try:
            tree = RedisTree(link)
            with process("--name", "r1", "--report", link.shown, "--kv-tokens", "4096") as (child, ready):
                async with httpx.AsyncClient(base_url=ready.rsplit(" ", 1)[1], timeout=WAIT_S) as http:
                    body = {"model": "simulated", "prompt": "the same words again and again " * 30, "max_tokens": 2}
                    (await http.post("/v1/completions", json=body)).raise_for_status()
                    truth = decode_snapshot((await http.get("/radixgate/blocks")).content)
                keys = {key for chain in truth.stored for key in chain.keys}
                assert keys
                deadline = time.monotonic() + WAIT_S
                while await tree.residency("r1") != (truth.seq, keys):
                    assert time.monotonic() < deadline
                child.terminate()
                assert await asyncio.to_thread(child.wait, WAIT_S) == 0
                assert await tree.residency("r1") is None
        finally:
            await link.close()


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_what_it_gives_up_is_as_the_flag_says(eviction: str) -> None:
    """Prompts in a loop slightly larger than the cache: the least recently used is always the next to be asked for."""
    found = 0
    with process("--kv-blocks", "60", "--eviction", eviction) as (_, ready):
        with httpx.Client(base_url=ready.rsplit(" ", 1)[1], timeout=WAIT_S) as http:
            for number in range(7 * 22):
                body = {"model": "simulated", "prompt": [100 + number % 22, *range(200, 248)], "max_tokens": 1}
                answer = http.post("/v1/completions", json=body)
                found += answer.raise_for_status().json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert (found > 0) == (eviction == "reuse")


def test_a_redis_that_is_not_there_keeps_it_neither_from_serving_nor_from_ending() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"redis://user:secret@127.0.0.1:{taken.getsockname()[1]}"
    with process("--report", url) as (child, ready):
        assert httpx.get(ready.rsplit(" ", 1)[1] + "/health").status_code == 200
        child.terminate()
        assert child.wait(WAIT_S) == 0
        assert child.stderr is not None
        said = child.stderr.read()
    assert said.count("cannot report") == 1
    assert "secret" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "8000"], "'--listen': '8000' is not HOST:PORT"),
        (["--listen", "127.0.0.1:http"], "is not HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "is not HOST:PORT"),
        (["--join", "127.0.0.1:9400"], "'--join': '127.0.0.1:9400' is not a URL"),
        (["--join", "http://h:port"], "is not a URL"),
        (["--report", "127.0.0.1:6379"], "'--report': this is not the URL of a Redis"),
        (["--report", "http://127.0.0.1:9400"], "'--report': http:// does not lead to a Redis"),
        (["--report", "redis://h?namespace=a/b"], "'--report': a namespace is"),
        (["--name", "r 1"], "'--name': 'r 1' is not a name"),
        (["--advertise", "replica-1"], "'--advertise': 'replica-1' is not a URL"),
        (["--listen", "0.0.0.0:8000", "--join", "http://127.0.0.1:1"], "--advertise: is needed with --join"),
        (["--listen", "[::]:8000", "--report", "redis://h"], "--advertise: is needed with --report"),
        (["--tokenizer", "/nowhere"], "--tokenizer"),
        (["--model", "/models/llama"], "neither `simulated` nor a directory"),
        (["--device", "gpu"], "'--device': 'gpu' is not a device"),
        (["--kv-events-zmq", "5557"], "--kv-events-zmq '5557': write an endpoint such as tcp://*:5557"),
        (["--kv-events-replay", "tcp://*:5558"], "--kv-events-replay: is of use only with --kv-events-zmq"),
        (["--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization"),
        (["--kv-blocks", "0"], "--kv-blocks"),
        (["--kv-blocks", "10", "--kv-tokens", "160"], "either --kv-blocks or --kv-tokens"),
        (["--kv-tokens", "15"], "less than one block of 16"),
        (["--kv-blocks", "10", "--max-model-len", "161"], "--max-model-len"),
        (["--max-batched-tokens", "4"], "--max-batched-tokens"),
        (["--speedup", "0"], "--speedup"),
        (["--eviction", "fifo"], "'--eviction': 'fifo' is not one of 'lru', 'reuse'"),
    ],
)
def test_a_wrong_flag_is_named(arguments: list[str], said: str) -> None:
    assert said in wrong(arguments)


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"cannot listen on {listen} (--listen): Address already in use" in wrong(["--listen", listen])


def test_a_port_in_use_is_found_before_a_model_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        assert "(--listen): Address already in use" in wrong(["--listen", listen, "--model", str(tmp_path)])
    assert "tokenizer.json is missing" in wrong(["--listen", listen, "--model", str(tmp_path)])


def test_every_eviction_can_be_chosen_and_the_default_is_that_of_the_settings() -> None:
    option = next(option for option in replica.params if option.name == "eviction")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == EVICTIONS
    assert option.default == Settings("r").eviction


def test_help_names_every_flag_and_needs_neither_torch_nor_a_redis_client() -> None:
    script = "import sys, replica.service, replica.cli; print({'torch', 'redis'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
    text = CliRunner().invoke(replica, ["--help"]).output
    for option in replica.params:
        assert option.opts[-1] in text
    assert f"simulated: {SIMULATED_KV_BLOCKS}]" in " ".join(text.split())
