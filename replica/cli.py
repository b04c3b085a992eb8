"""`radixgate replica`: flags in, a running replica out, a clean exit on SIGTERM or SIGINT.

Owns the flags and their help. Must hold no logic beyond that, and never import torch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from radix.redis_url import RedisUrlError, parse_redis_url

if TYPE_CHECKING:
    from replica.service import ReplicaService, Settings

DEFAULT_MODEL_LEN = 32_768
DEFAULT_KV_BLOCKS = 8192
WILDCARDS = ("", "0.0.0.0", "::")


def _listen(context: click.Context, option: click.Parameter, value: str) -> tuple[str, int]:
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{value!r} is not HOST:PORT, such as 127.0.0.1:8000 (port 0 takes a free one).")
    return host.strip("[]"), int(port)


def _url(context: click.Context, option: click.Parameter, value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query
    except ValueError:
        good = False
    if value and not good:
        raise click.BadParameter(f"{value!r} is not a URL such as http://10.0.0.1:9400.")
    return value.rstrip("/")


def _urls(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_url(context, option, value) for value in values)


def _redis_urls(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            parse_redis_url(value)
        except RedisUrlError as error:
            raise click.BadParameter(f"{error}.") from None
    return values


def _name(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[\x21-\x7e]{1,200}", value):
        raise click.BadParameter(f"{value!r} is not a name; use up to 200 printable ASCII characters, no blanks.")
    return value


POSITIVE = click.IntRange(min=1)
RATE = click.FloatRange(min=0, min_open=True)
TIME = click.FloatRange(min=0)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True})
@click.option("--model", default="simulated", help="What to serve: `simulated` needs no GPU and no weights.")
@click.option("--listen", default="127.0.0.1:8000", metavar="HOST:PORT", callback=_listen, help="Port 0: a free one.")
@click.option(
    "--name", callback=_name, help="Its name in the fleet, unlike any other's.  [default: host name and port]"
)
@click.option("--served-model-name", metavar="NAME", help="What clients call the model.  [default: that of --model]")
@click.option(
    "--join",
    metavar="URL",
    multiple=True,
    callback=_urls,
    help="Control address of a router to register with, such as http://127.0.0.1:9400; repeat for each.",
)
@click.option(
    "--report",
    envvar="RADIXGATE_REDIS",
    metavar="URL",
    multiple=True,
    callback=_redis_urls,
    help="Redis to report to, such as redis://127.0.0.1:6379/0?namespace=prod, beside or instead of --join; repeat for "
    "each.  [or $RADIXGATE_REDIS]",
)
@click.option(
    "--advertise", metavar="URL", default="", callback=_url, help="Where routers reach it.  [default: --listen]"
)
@click.option(
    "--tokenizer",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Directory with tokenizer.json and the chat template.  [default: the bundled one]",
)
@click.option("--block-size", type=POSITIVE, default=16, metavar="TOKENS", help="Tokens in a KV block.")
@click.option("--kv-blocks", type=POSITIVE, metavar="N", help=f"KV blocks in all.  [default: {DEFAULT_KV_BLOCKS}]")
@click.option("--kv-tokens", type=POSITIVE, metavar="N", help="The same, in tokens.")
@click.option(
    "--max-model-len",
    type=POSITIVE,
    metavar="TOKENS",
    help=f"Longest prompt and output together.  [default: {DEFAULT_MODEL_LEN}, or what the KV blocks hold]",
)
@click.option("--max-running", type=POSITIVE, default=128, metavar="N", help="Requests in a batch.")
@click.option("--max-batched-tokens", type=POSITIVE, default=2048, metavar="N", help="Tokens computed in a step.")
@click.option(
    "--prefill-rate", type=RATE, default=8000.0, metavar="TOKENS/S", help="Simulated: prompt tokens a second."
)
@click.option("--step-ms", type=TIME, default=11.8, metavar="MS", help="Simulated: a step, before any work in it.")
@click.option("--decode-ms", type=TIME, default=0.1, metavar="MS", help="Simulated: more for each decoding request.")
@click.option(
    "--context-ns", type=TIME, default=27.0, metavar="NS", help="Simulated: more for each token it attends to."
)
@click.option("--speedup", type=RATE, default=1.0, metavar="F", help="Simulated: run F times as fast as that.")
@click.option("--drain-timeout", type=TIME, default=2.0, metavar="S", help="For requests under way at shutdown.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
def replica(
    model: str,
    listen: tuple[str, int],
    name: str | None,
    log_level: str,
    **flags: Any,
) -> None:
    """Run one replica: an OpenAI-compatible server with a prefix cache, which tells the fleet what it has cached.

    \b
    radixgate replica --model simulated --listen 127.0.0.1:8000
    radixgate replica --model simulated --listen 127.0.0.1:0 --name r1 --join http://127.0.0.1:9400
    radixgate replica --model simulated --listen 127.0.0.1:0 --name r2 --report redis://127.0.0.1:6379
    """
    if model != "simulated":
        raise click.BadParameter(
            f"{model!r} cannot be served: this version has the `simulated` model only. Serving real models needs the "
            "`replica` extra (pip install 'radixgate[replica]') of a version that comes with a GPU runner.",
            param_hint="--model",
        )
    host, port = listen
    told = "--join" if flags["join"] else "--report" if flags["report"] else None
    if told and not flags["advertise"] and host in WILDCARDS:
        raise click.BadParameter(
            f"is needed with {told}, for routers cannot reach {host or '*'}; write http://HOST:PORT of this machine.",
            param_hint="--advertise",
        )
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Several replicas of one machine differ in their ports; with a port not known yet, in their processes.
    settings = _settings(model, host, port, name or f"{socket.gethostname()}-{port or os.getpid()}", flags)
    _run(settings)


def _settings(model: str, host: str, port: int, name: str, flags: dict[str, Any]) -> Settings:
    # Imported here, so that --help and a wrong flag are answered at once.
    from replica import tokenizer
    from replica.scheduler import SchedulerLimits
    from replica.service import Settings
    from replica.simulated import TimingModel

    blocks = _kv_blocks(flags["kv_blocks"], flags["kv_tokens"], flags["block_size"])
    room = blocks * flags["block_size"]
    if (flags["max_model_len"] or 0) > room:
        raise click.BadParameter(
            f"{flags['max_model_len']} tokens do not fit into the {room} tokens of the KV blocks; lower it, or raise "
            "--kv-blocks.",
            param_hint="--max-model-len",
        )
    if flags["max_batched_tokens"] < flags["max_running"]:
        raise click.BadParameter(
            f"{flags['max_batched_tokens']} is less than --max-running, {flags['max_running']}; each decoding request "
            "takes one token of a step.",
            param_hint="--max-batched-tokens",
        )
    return Settings(
        name=name,
        model=flags["served_model_name"] or model,
        host=host,
        port=port,
        advertise=flags["advertise"],
        join=flags["join"],
        report=flags["report"],
        tokenizer=flags["tokenizer"] or tokenizer.directory(),
        block_size=flags["block_size"],
        kv_blocks=blocks,
        max_model_len=flags["max_model_len"] or min(DEFAULT_MODEL_LEN, room),
        limits=SchedulerLimits(flags["max_batched_tokens"], flags["max_running"]),
        timing=TimingModel(
            step_s=flags["step_ms"] / 1e3,
            prefill_rate=flags["prefill_rate"],
            decode_s=flags["decode_ms"] / 1e3,
            context_token_s=flags["context_ns"] / 1e9,
        ),
        speedup=flags["speedup"],
        drain_s=flags["drain_timeout"],
    )


def _kv_blocks(blocks: int | None, tokens: int | None, block_size: int) -> int:
    if blocks is not None and tokens is not None:
        raise click.UsageError("Give either --kv-blocks or --kv-tokens, for both say the same.")
    if tokens is not None and tokens < block_size:
        raise click.BadParameter(f"{tokens} tokens are less than one block of {block_size}.", param_hint="--kv-tokens")
    return blocks or (tokens // block_size if tokens else DEFAULT_KV_BLOCKS)


def _run(settings: Settings) -> None:
    import uvloop

    from radix.chat import TokenizerError
    from replica.service import ReplicaService

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(ReplicaService(settings), settings))
        except TokenizerError as error:
            raise click.BadParameter(str(error), param_hint="--tokenizer") from None
        except OSError as error:
            # asyncio wraps the system's words in longer ones; a failed name look-up has none of the system's.
            number = error.errno or 0
            reason = os.strerror(number) if number > 0 else error.strerror or str(error)
            listen = f"{settings.host}:{settings.port}"
            raise click.ClickException(f"cannot listen on {listen} (--listen): {reason}.") from None


async def _serve(service: ReplicaService, settings: Settings) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await service.start()
    try:
        click.echo(f"replica {settings.name} serving {settings.model} on {service.url}")
        await ended.wait()
    finally:
        await service.stop()


if __name__ == "__main__":
    replica()
