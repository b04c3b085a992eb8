"""`radixgate serve`: flags in, a running router out, as one process or several.

Owns the flags, their help and what is printed. Must hold no logic beyond that; imports the router only where it runs.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from router.config import ConfigError, ServeConfig, parse_replica, parse_tokenizer, read_config
from scoring.policies import POLICIES


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--config", "path", type=click.Path(path_type=Path), help="YAML file with any of these settings.")
@click.option("--listen", metavar="HOST:PORT", help="Data port: what clients talk to.  [127.0.0.1:8080]")
@click.option(
    "--control", metavar="HOST:PORT", help="Control port: health, metrics, joining replicas.  [127.0.0.1:9400]"
)
@click.option(
    "--replica",
    "replicas",
    metavar="[MODEL=]URL",
    multiple=True,
    help="An OpenAI-compatible server, such as http://10.0.0.1:8000; repeat for each. "
    "MODEL limits it to a model name, or a prefix such as qwen/. Without MODEL it is asked what it serves.",
)
@click.option(
    "--policy",
    type=click.Choice(list(POLICIES)),
    metavar="NAME",
    help=f"How a replica is chosen: {', '.join(POLICIES)}. Those from longest_prefix on are for comparison; like_* are "
    "other routers' published rules.  [kv]",
)
@click.option(
    "--tokenizer",
    "tokenizers",
    metavar="[MODEL=]DIR",
    multiple=True,
    help="Directory with tokenizer.json and the chat template: exact block keys instead of hashed text. "
    "Bundled replicas say theirs when they join.",
)
@click.option("--max-body", type=int, metavar="BYTES", help="Largest request body.  [64 MiB]")
@click.option("--max-head", type=int, metavar="BYTES", help="Largest request head.  [64 KiB]")
@click.option("--read-timeout", type=float, metavar="S", help="For a request to be read, without progress.  [30]")
@click.option("--idle-timeout", type=float, metavar="S", help="For a kept client connection without a request.  [120]")
@click.option("--response-timeout", type=float, metavar="S", help="For an answer, without progress.  [600]")
@click.option("--connect-timeout", type=float, metavar="S", help="For connecting to a replica.  [2]")
@click.option("--attempts", type=int, metavar="N", help="Tries of a request that got no byte of an answer yet.  [5]")
@click.option("--drain-timeout", type=float, metavar="S", help="For requests under way at shutdown.  [30]")
@click.option("--health-interval", type=float, metavar="S", help="Between looks at a healthy replica.  [5]")
@click.option(
    "--predicted-tokens",
    type=int,
    metavar="N",
    help="Prompt tokens remembered for a replica that does not report its blocks.  [2000000]",
)
@click.option("--predicted-ttl", type=float, metavar="S", help="How long they are believed to be cached.  [900]")
@click.option(
    "--redis",
    metavar="URL",
    envvar="RADIXGATE_REDIS",
    help="One tree and one load ledger for any number of routers: redis://, rediss:// (TLS), "
    "redis+sentinel://HOST:PORT,…/SERVICE or redis+cluster://HOST:PORT,…; ?namespace=NAME keeps fleets apart.  "
    "[or $RADIXGATE_REDIS]",
)
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Router processes on the one data port; more than one need --redis. Worker k (from 0) has the control port "
    "of --control + k. Each counts for itself: give Prometheus all of them as targets; sum counters, and take the "
    "maximum of gauges.  [1]",
)
@click.option(
    "--private",
    is_flag=True,
    default=None,
    help="Experiment: each router believes only what it routed itself, "
    "and ignores replicas' reports and other routers' loads.",
)
@click.option("--seed", type=int, help="Seed of the random choices, for repeatable experiments.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def serve(path: Path | None, log_level: str, **flags: Any) -> None:
    """Run the router.

    \b
    In front of servers you have:    radixgate serve --replica http://10.0.0.1:8000 --replica http://10.0.0.2:8000
    For replicas that join:          radixgate serve --listen :8080 --control :9400
    On several processors:           radixgate serve --workers 4 --redis redis://10.0.0.9:6379
    """
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    flags["replicas"] = [parse_replica(text) for text in flags["replicas"]]
    flags["tokenizers"] = dict(parse_tokenizer(text) for text in flags["tokenizers"])
    try:
        config = read_config(path, flags)
        if config.workers == 1:
            _run_alone(config)
        else:
            _run_workers(config)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


def _run_alone(config: ServeConfig) -> None:
    from router.worker import run

    def announce(listen: str, control: str) -> None:
        click.echo(f"radixgate serving on http://{listen} (policy {config.policy}), control on http://{control}")

    run(config, announce)


def _run_workers(config: ServeConfig) -> None:
    from router.workers import WorkerFailed, supervise

    def announce(listen: str, controls: Sequence[str]) -> None:
        click.echo(
            f"radixgate serving on http://{listen} (policy {config.policy}, {config.workers} workers), "
            f"control on {', '.join('http://' + control for control in controls)}"
        )

    try:
        drained = asyncio.run(supervise(config, announce))
    except WorkerFailed as error:
        raise click.ClickException(f"{error}; what it said is above") from None
    if not drained:
        sys.exit(1)
