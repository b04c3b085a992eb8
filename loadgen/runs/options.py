"""Options that commands share: what is asked, of which fleet, and how it is measured.

Owns these flags, and how they become a plan, a fleet and a way to measure. A decorator gives its command one argument
for all of its flags: `plan_options` gives `asked`, `fleet_options` `fleet`, `measure_options` `measure`. Must never
start anything; what is wrong is a `click.UsageError` that names the flag.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click
import msgspec

from loadgen.fleet import FleetParameters
from loadgen.plans.arrivals import FORMS as ARRIVALS
from loadgen.plans.catalogue import DURATION_S, WORKLOADS
from loadgen.plans.settings import settings_of, split_setting
from loadgen.reports.schema import Slo
from loadgen.runs.asked import FLAGS_OF, Asked
from loadgen.runs.events import FORMS as EVENTS
from loadgen.runs.events import Event, parse_event
from loadgen.runs.runner import DRAIN_S

Command = Callable[..., Any]
MAX_LAG_S = 0.02
FLEET = FleetParameters()
SLO = Slo()
DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Finite(click.FloatRange):
    """A number within a range that is not nan, with which nothing compares, nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


POSITIVE = Finite(0, min_open=True)


class Measure(msgspec.Struct, frozen=True):
    """How a run is measured, and what is done to the fleet meanwhile. Seconds."""

    slo: Slo
    max_lag_s: float
    drain_s: float
    events: tuple[Event, ...]
    session_header: str | None
    ideals: bool


def plan_options(command: Command) -> Command:
    """Gives the command `asked: Asked`."""

    @wraps(command)
    def with_plan(**flags: Any) -> Any:
        return command(asked=_asked(flags), **flags)

    return _options(
        with_plan,
        click.option(
            "--workload",
            default="rag",
            show_default=True,
            type=click.Choice(list(WORKLOADS)),
            help="; ".join(f"{name}: {workload.description}" for name, workload in WORKLOADS.items()) + ".",
        ),
        click.option("--arrivals", metavar="SPEC", help=f"When sessions begin: {ARRIVALS}.  [the workload's own]"),
        click.option(
            "--duration",
            type=POSITIVE,
            help=f"Seconds in which requests are due.  [{DURATION_S:g}, or a trace's own]",
        ),
        click.option("--sessions", type=click.IntRange(1), help="At most so many sessions."),
        click.option("--seed", default=1, show_default=True, help="Fixes what is asked, and when."),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="NAME=VALUE",
            help="A parameter of the workload; --describe lists them. Repeat for each.",
        ),
        click.option(
            "--describe",
            is_flag=True,
            expose_value=False,
            callback=_describe,
            help="List the parameters of each workload, and exit.",
        ),
        click.option("--trace", type=FILE, help="The file of the workload `trace`, which it chooses."),
        click.option("--token-scale", type=click.IntRange(1), help="Trace: divides the tokens of its blocks."),
        click.option("--rate-scale", type=POSITIVE, help="Trace: requests come so many times as fast."),
        click.option("--until", type=POSITIVE, help="Trace: only its first so many seconds."),
        click.option(
            "--form",
            default="text",
            show_default=True,
            type=click.Choice(["text", "tokens", "chat"]),
            help="How prompts are sent: as text or token ids to /v1/completions, or as chat messages.",
        ),
        click.option(
            "--history",
            default="planned",
            show_default=True,
            type=click.Choice(["planned", "real"]),
            help="In conversations, earlier answers are the plan's (every server is asked the same) or those received.",
        ),
        click.option(
            "--tokenizer",
            type=DIRECTORY,
            help="Directory with the served model's tokenizer.json, for prompts of exact lengths.  [the bundled one]",
        ),
    )


def fleet_options(command: Command) -> Command:
    """Gives the command `fleet: FleetParameters`, of simulated replicas that it starts."""

    @wraps(command)
    def with_fleet(**flags: Any) -> Any:
        slow = dict(flags.pop("slow"))
        fleet = FleetParameters(**{name: flags.pop(name) for name in _FLEET_FLAGS}, slow=slow)
        if unknown := [name for name in slow if name not in {f"r{index}" for index in range(fleet.replicas)}]:
            raise click.BadParameter(f"{unknown[0]!r} is none of r0 to r{fleet.replicas - 1}.", param_hint="--slow")
        return command(fleet=fleet, **flags)

    return _options(
        with_fleet,
        click.option(
            "--replicas", default=FLEET.replicas, show_default=True, type=click.IntRange(1, 256), help="Simulated ones."
        ),
        click.option(
            "--kv-tokens", default=FLEET.kv_tokens, show_default=True, type=click.IntRange(16), help="KV room of each."
        ),
        click.option(
            "--speedup",
            default=FLEET.speedup,
            show_default=True,
            type=POSITIVE,
            help="Speed of the simulated hardware.",
        ),
        click.option(
            "--prefill-rate",
            default=FLEET.prefill_rate,
            show_default=True,
            type=POSITIVE,
            help="Prompt tokens a second of a replica, before the speedup.",
        ),
        click.option(
            "--max-model-len",
            default=FLEET.max_model_len,
            type=click.IntRange(0),
            help="Longest prompt and answer together.  [as long as the plan needs]",
        ),
        click.option(
            "--slow",
            multiple=True,
            metavar="NAME:FACTOR",
            callback=_slow,
            help="Mixed hardware: this replica (r0, r1, …) takes FACTOR times as long. Repeat for each.",
        ),
    )


def measure_options(command: Command) -> Command:
    """Gives the command `measure: Measure`."""

    @wraps(command)
    def with_measure(**flags: Any) -> Any:
        slo = Slo(flags.pop("slo_ttft"), flags.pop("slo_tpot"))
        header = flags.pop("session_header")
        times = {name: flags.pop(name[:-2]) for name in ("max_lag_s", "drain_s")}
        events, ideals = flags.pop("events"), flags.pop("ideals")
        return command(measure=Measure(slo, **times, events=events, session_header=header, ideals=ideals), **flags)

    return _options(
        with_measure,
        click.option("--slo-ttft", default=SLO.ttft_s, show_default=True, type=POSITIVE, help="Seconds, for goodput."),
        click.option("--slo-tpot", default=SLO.tpot_s, show_default=True, type=POSITIVE, help="Seconds, for goodput."),
        click.option(
            "--max-lag",
            default=MAX_LAG_S,
            show_default=True,
            type=POSITIVE,
            help="Seconds: a run whose client was later than this (p99) is invalid.",
        ),
        click.option(
            "--drain",
            default=DRAIN_S,
            show_default=True,
            type=Finite(0),
            help="Seconds for answers that are under way at the end.",
        ),
        click.option(
            "--event", "events", multiple=True, metavar="EVENT", callback=_events, help=f"{EVENTS}. Repeat for each."
        ),
        click.option(
            "--session-header",
            metavar="NAME",
            help="A header that tells the server which requests belong together, such as x-session-id.  [none is sent]",
        ),
        click.option(
            "--ideals/--no-ideals",
            default=True,
            show_default=True,
            help="Work out the hit rates of an infinite cache and of all the memory in one.",
        ),
    )


_FLEET_FLAGS = ("replicas", "kv_tokens", "speedup", "prefill_rate", "max_model_len")
_TRACE_FLAGS = {"trace": "file", "token_scale": "token_scale", "rate_scale": "rate_scale", "until": "until_s"}


def _options(command: Command, *options: Callable[[Command], Command]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def _asked(flags: dict[str, Any]) -> Asked:
    try:
        settings = dict(map(split_setting, flags.pop("settings")))
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--set") from None
    of_trace = {name: flags.pop(flag) for flag, name in _TRACE_FLAGS.items()}
    given = {name: str(value) for name, value in of_trace.items() if value is not None}
    workload = "trace" if "file" in given else flags["workload"]
    if given and workload != "trace":
        raise click.UsageError(f"{FLAGS_OF[next(iter(given))]} is for the workload `trace`: give --trace FILE.")
    if workload == "trace" and "file" not in {**settings, **given}:
        raise click.UsageError("the workload `trace` needs its file: give --trace FILE.")
    flags.pop("workload")
    names = ("arrivals", "duration", "sessions", "seed", "form", "history", "tokenizer")
    return Asked(workload=workload, settings=settings | given, **{name: flags.pop(name) for name in names})


def _events(context: click.Context, option: click.Parameter, texts: Sequence[str]) -> tuple[Event, ...]:
    try:
        return tuple(map(parse_event, texts))
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def _slow(context: click.Context, option: click.Parameter, texts: Sequence[str]) -> list[tuple[str, float]]:
    pairs = []
    for text in texts:
        name, _, factor = text.partition(":")
        try:
            pairs.append((name, float(factor)))
        except ValueError:
            raise click.BadParameter(f"{text!r} is not NAME:FACTOR, such as r0:2.") from None
        if not 0 < pairs[-1][1] < float("inf"):
            raise click.BadParameter(f"{text!r}: a factor is a number above 0.")
    return pairs


def _describe(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    for name, workload in WORKLOADS.items():
        click.echo(f"{name}: {workload.description}; arrivals {workload.arrivals} unless --arrivals says otherwise")
        for setting in settings_of(workload.parameters):
            default = "must be given" if setting.required else f"{_written(setting.default)}"
            unit = f" {setting.unit}" if setting.unit else ""
            click.echo(f"  {setting.name:<20} {setting.description} [{default}{unit}]")
    context.exit()


def _written(default: Any) -> str:
    return "-".join(map(str, default)) if isinstance(default, tuple) else str(default).lower()
