"""`radixgate replica`: flags in, a running replica out, a clean exit on SIGTERM or SIGINT.

Owns the flags and their help. Must hold no logic beyond that, and never import torch.
"""

from __future__ import annotations

import asyncio
import gc
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
    from replica.service import ReplicaService
    from replica.settings import ModelSource, Settings

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


def _device(context: click.Context, option: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f"{value!r} is not a device; use auto, cpu, cuda or cuda:N.")
    return value


POSITIVE = click.IntRange(min=1)
RATE = click.FloatRange(min=0, min_open=True)
TIME = click.FloatRange(min=0)
SHARE = click.FloatRange(min=0, max=1, min_open=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True})
@click.option(
    "--model",
    default="simulated",
    metavar="DIR",
    help="What to serve: a directory with a Hugging Face model, or `simulated`, which needs no GPU and no weights.",
)
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
    "--advertise",
    metavar="URL",
    default="",
    show_default=False,
    callback=_url,
    help="Where routers reach it.  [default: --listen]",
)
@click.option(
    "--kv-events-zmq",
    metavar="ENDPOINT",
    default="",
    show_default=False,
    help="Publish KV events as vLLM does, for routers that read those, such as tcp://*:5557.",
)
@click.option(
    "--kv-events-replay", metavar="ENDPOINT", default="", show_default=False, help="Replay missed KV events there."
)
@click.option("--kv-events-topic", metavar="TEXT", default="", show_default=False, help="Topic of the KV events.")
@click.option(
    "--tokenizer",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Directory with tokenizer.json and the chat template.  [default: that of the model]",
)
@click.option("--block-size", type=POSITIVE, default=16, metavar="TOKENS", help="Tokens in a KV block.")
@click.option(
    "--kv-blocks",
    type=POSITIVE,
    metavar="N",
    help="KV blocks in all.  [default: what memory allows; simulated: 8192]",
)
@click.option("--kv-tokens", type=POSITIVE, metavar="N", help="The same, in tokens.")
@click.option(
    "--max-model-len",
    type=POSITIVE,
    metavar="TOKENS",
    help="Longest prompt and output together.  [default: what the model was made for, or what the KV blocks hold]",
)
@click.option("--max-running", type=POSITIVE, default=128, metavar="N", help="Requests in a batch.")
@click.option("--max-batched-tokens", type=POSITIVE, default=2048, metavar="N", help="Tokens computed in a step.")
@click.option("--prefix-cache/--no-prefix-cache", default=True, help="Whether prompts share the KV of equal prefixes.")
@click.option(
    "--eviction",
    type=click.Choice(["lru", "reuse"]),
    default="reuse",
    help="Whose KV is given up when room is needed: what was used least recently, or what is least likely to be used "
    "again soon, as learned from traffic.",
)
@click.option("--device", default="auto", callback=_device, help="auto (a GPU if there is one), cpu, cuda or cuda:N.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    help="auto: the model's own on a GPU, float32 on a CPU.",
)
@click.option(
    "--kv-cache-dtype", type=click.Choice(["auto", "fp8"]), default="auto", help="fp8 (e4m3) holds twice the tokens."
)
@click.option(
    "--load-format",
    type=click.Choice(["safetensors", "dummy"]),
    default="safetensors",
    help="dummy: random weights, so that a config.json and a tokenizer suffice.",
)
@click.option(
    "--gpu-memory-utilization", type=SHARE, default=0.9, metavar="SHARE", help="Of the GPU's memory, for everything."
)
@click.option("--graphs/--no-graphs", default=True, help="GPU: CUDA graphs for decoding.")
@click.option("--overlap/--no-overlap", default=True, help="Schedule a step while the one before is computed.")
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
    radixgate replica --model ./Llama-3.1-8B-Instruct                   # on a GPU, with room for KV as memory allows
    radixgate replica --model ./Qwen3-0.6B --device cpu --kv-tokens 20000 --max-running 8
    radixgate replica --model ./Qwen3-0.6B --listen 127.0.0.1:0 --name r1 --join http://127.0.0.1:9400
    radixgate replica --model ./Qwen3-0.6B --listen 127.0.0.1:0 --name r2 --report redis://127.0.0.1:6379

    The directory holds config.json, *.safetensors and tokenizer.json, as `hf download` leaves them. Families: Llama,
    Qwen2, Qwen3, Mistral, Mixtral, Qwen3-MoE. A GPU needs compute capability 8.0 or later; on a CPU the same models
    run slowly.
    """
    host, port = listen
    told = "--join" if flags["join"] else "--report" if flags["report"] else None
    if told and not flags["advertise"] and host in WILDCARDS:
        raise click.BadParameter(
            f"is needed with {told}, for routers cannot reach {host or '*'}; write http://HOST:PORT of this machine.",
            param_hint="--advertise",
        )
    if flags["kv_events_replay"] and not flags["kv_events_zmq"]:
        raise click.BadParameter("is of use only with --kv-events-zmq.", param_hint="--kv-events-replay")
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Several replicas of one machine differ in their ports; with a port not known yet, in their processes.
    settings = _settings(model, host, port, name or f"{socket.gethostname()}-{port or os.getpid()}", flags)
    _run(settings)


def _settings(model: str, host: str, port: int, name: str, flags: dict[str, Any]) -> Settings:
    # Imported here, so that --help and a wrong flag are answered at once.
    from replica.scheduler import SchedulerLimits
    from replica.settings import SIMULATED_KV_BLOCKS, KvEvents, Settings
    from replica.simulated import TimingModel

    source = _source(model, flags)
    blocks = _kv_blocks(flags["kv_blocks"], flags["kv_tokens"], flags["block_size"])
    room = (blocks or (0 if source else SIMULATED_KV_BLOCKS)) * flags["block_size"]
    if room and (flags["max_model_len"] or 0) > room:
        raise click.BadParameter(
            f"{flags['max_model_len']} tokens do not fit into the {room} tokens of the KV blocks; lower it, or raise "
            "--kv-blocks or --kv-tokens.",
            param_hint="--max-model-len",
        )
    if flags["max_batched_tokens"] < flags["max_running"]:
        raise click.BadParameter(
            f"{flags['max_batched_tokens']} is less than --max-running, {flags['max_running']}; each decoding request "
            "takes one token of a step.",
            param_hint="--max-batched-tokens",
        )
    zmq = flags["kv_events_zmq"]
    return Settings(
        name=name,
        model=flags["served_model_name"] or (source.directory.resolve().name if source else model),
        host=host,
        port=port,
        advertise=flags["advertise"],
        join=flags["join"],
        report=flags["report"],
        kv_events=KvEvents(zmq, flags["kv_events_replay"], flags["kv_events_topic"]) if zmq else None,
        tokenizer=flags["tokenizer"],
        block_size=flags["block_size"],
        kv_blocks=blocks,
        max_model_len=flags["max_model_len"],
        prefix_cache=flags["prefix_cache"],
        eviction=flags["eviction"],
        limits=SchedulerLimits(flags["max_batched_tokens"], flags["max_running"]),
        source=source,
        timing=TimingModel(
            step_s=flags["step_ms"] / 1e3,
            prefill_rate=flags["prefill_rate"],
            decode_s=flags["decode_ms"] / 1e3,
            context_token_s=flags["context_ns"] / 1e9,
        ),
        speedup=flags["speedup"],
        drain_s=flags["drain_timeout"],
    )


def _source(model: str, flags: dict[str, Any]) -> ModelSource | None:
    from replica.settings import ModelSource

    if model == "simulated":
        return None
    directory = Path(model)
    if not directory.is_dir():
        raise click.BadParameter(
            f"{model!r} is neither `simulated` nor a directory here. Models are served from local directories; fetch "
            "one first, for example with `hf download`.",
            param_hint="--model",
        )
    return ModelSource(
        directory,
        device=flags["device"],
        dtype=flags["dtype"],
        kv_dtype=flags["kv_cache_dtype"],
        load_format=flags["load_format"],
        memory_share=flags["gpu_memory_utilization"],
        graphs=flags["graphs"],
        overlap=flags["overlap"],
    )


def _kv_blocks(blocks: int | None, tokens: int | None, block_size: int) -> int | None:
    if blocks is not None and tokens is not None:
        raise click.UsageError("Give either --kv-blocks or --kv-tokens, for both say the same.")
    if tokens is not None and tokens < block_size:
        raise click.BadParameter(f"{tokens} tokens are less than one block of {block_size}.", param_hint="--kv-tokens")
    return tokens // block_size if tokens else blocks


def _run(settings: Settings) -> None:
    import uvloop

    from replica.kv_events import KvEventsError

    try:
        asyncio.run(_try_address(settings.host, settings.port))
    except OSError as error:
        raise _cannot_listen(settings, error) from None
    service = _make(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(service, settings))
        except KvEventsError as error:
            raise click.UsageError(f"{error}.") from None
        except OSError as error:
            raise _cannot_listen(settings, error) from None


async def _try_address(host: str, port: int) -> None:
    """Takes the address and leaves it: a port in use is found before minutes of loading. Raises OSError."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
    server.close()
    await server.wait_closed()


def _cannot_listen(settings: Settings, error: OSError) -> click.ClickException:
    # asyncio wraps the system's words in longer ones; a failed name look-up has none of the system's.
    number = error.errno or 0
    reason = os.strerror(number) if number > 0 else error.strerror or str(error)
    return click.ClickException(f"cannot listen on {settings.host}:{settings.port} (--listen): {reason}.")


def _make(settings: Settings) -> ReplicaService:
    """Loads everything, and says what is wrong by the name of its flag."""
    from radix.chat import TokenizerError
    from replica.kv_events import KvEventsError
    from replica.loading_bar import loading_bar
    from replica.models.config import ModelError
    from replica.service import ReplicaService

    try:
        with loading_bar(settings.model) as progress:
            return ReplicaService(settings, progress)
    except TokenizerError as error:
        raise click.BadParameter(str(error), param_hint="--tokenizer") from None
    except ModelError as error:
        raise click.UsageError(f"cannot serve --model {settings.model}: {error}.") from None
    except KvEventsError as error:
        raise click.UsageError(f"{error}.") from None
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"serving a real model needs the package {error.name!r}: pip install 'radixgate[replica]'."
        ) from None


async def _serve(service: ReplicaService, settings: Settings) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await service.start()
    _quiet_collector()
    try:
        click.echo(f"replica {settings.name} serving {settings.model} on {service.url}")
        await ended.wait()
    finally:
        await service.stop()


def _quiet_collector() -> None:
    """A large cache's bookkeeping lives long and has no cycles: the cycle collector, which would stop all answers for
    a quarter of a second to walk it, comes less often, and never walks what start-up made.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


if __name__ == "__main__":
    replica()
