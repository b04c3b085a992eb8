"""`radixgate audit`: is what Redis and the routers believe of the replicas true?

Owns the flags, their help, and the exit code. Must hold no logic beyond that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
import msgspec

if TYPE_CHECKING:
    from radix.redis_tree import RedisTree
    from router.audit import AuditReport
    from router.audit_repair import Repair

PAUSE_S = 0.5
CONNECT_S = 2.0
ANSWER_S = 30.0  # a large block list takes its time


def _urls(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            parts = urlsplit(value)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query
        except ValueError:
            good = False
        if not good:
            raise click.BadParameter(f"{value!r} is not a URL such as http://10.0.0.1:9400.")
    return tuple(dict.fromkeys(value.rstrip("/") for value in values))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--redis", metavar="URL", help="The Redis that the routers share, as `serve --redis` takes it.")
@click.option(
    "--router",
    "routers",
    metavar="URL",
    multiple=True,
    callback=_urls,
    help="Control address of a router (of each worker), such as http://127.0.0.1:9400; repeat for each.",
)
@click.option("--repair", "wanted", is_flag=True, help="Put right what differs, and audit again.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, for machines.")
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help=f"Looks, {PAUSE_S:g} s apart, in which a block must differ each time to count.",
)
def audit(redis: str | None, routers: tuple[str, ...], wanted: bool, as_json: bool, rounds: int) -> None:
    """Compare what each replica holds with what Redis and the routers believe that it holds.

    \b
    Routers that share a Redis:  radixgate audit --redis redis://10.0.0.1:6379/0 --router http://10.0.0.2:9400
    A router by itself:          radixgate audit --router http://127.0.0.1:9400

    Every replica that Redis or one of the routers knows is asked for its block list. Two things can be wrong:

    \b
    false positive   a block is believed to be there and is not: prompts are sent after a cache that has gone
    false negative   a block is there and nobody knows: prompts are computed again elsewhere

    Blocks come and go while one looks. So where something differs, one looks again, and only what differs in each of
    --rounds looks is counted. When nothing moves, the figures are exact.

    --repair hands the replica's own block list to Redis, from where it reaches every router. Without --redis each
    router that was wrong is asked to fetch it.

    \b
    Exit code  0  no differences
               1  differences (with --repair: that are still there)
               2  something could not be compared: a replica or a router is away, or does not know the other
    """
    if not redis and not routers:
        raise click.UsageError("Say what to compare the replicas with: --router URL, --redis URL, or both.")
    first, repairs, after = asyncio.run(_audit(redis, routers, wanted, rounds))
    if as_json:
        _print_json(first, repairs, after)
    else:
        _print(first, repairs, after)
    raise SystemExit((after or first).exit_code)


async def _audit(
    redis: str | None, routers: Sequence[str], wanted: bool, rounds: int
) -> tuple[AuditReport, Sequence[Repair], AuditReport | None]:
    """The first audit, the repairs, and the audit after them if anything was repaired."""
    import aiohttp

    from router.audit import Place, audit
    from router.audit_places import RedisPlace, RouterPlace, held_by
    from router.audit_repair import repair

    async with AsyncExitStack() as stack:
        timeout = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        tree = _open(redis, stack) if redis else None
        places: list[Place] = [RedisPlace(tree)] if tree is not None else []
        places += [RouterPlace(http, control) for control in routers]

        async def look() -> AuditReport:
            return await audit(places, lambda name, url: held_by(http, name, url), rounds, PAUSE_S)

        first = await look()
        repairs = await repair(first, http, tree) if wanted else ()
        return first, repairs, await look() if repairs else None


def _open(url: str, stack: AsyncExitStack) -> RedisTree:
    from radix.redis_link import RedisUrlError, open_link
    from radix.redis_tree import RedisTree

    try:
        link = open_link(url)
    except RedisUrlError as error:
        raise click.BadParameter(str(error), param_hint="--redis") from None
    stack.push_async_callback(link.close)
    return RedisTree(link)


def _print(first: AuditReport, repairs: Sequence[Repair], after: AuditReport | None) -> None:
    from rich.console import Console

    from router.audit_table import repaired, table, verdict

    console = Console()

    def show(report: AuditReport) -> None:
        if report.replicas:
            console.print(table(report))
            console.print()
        for line in verdict(report):
            console.print(line, highlight=False, soft_wrap=True)

    show(first)
    for line in repaired(repairs):
        console.print(line, highlight=False, soft_wrap=True)
    if after is not None:
        console.print("\nAfter the repair:\n")
        show(after)


def _print_json(first: AuditReport, repairs: Sequence[Repair], after: AuditReport | None) -> None:
    document = {
        "version": 1,
        "exit_code": (after or first).exit_code,
        "audit": _plain(first),
        "repairs": repairs,
        "after": after and _plain(after),
    }
    click.echo(msgspec.json.format(msgspec.json.encode(document)))


def _plain(report: AuditReport) -> dict[str, object]:
    return {"differences": report.differences, "complete": report.complete, **msgspec.structs.asdict(report)}
