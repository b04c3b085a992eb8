"""The workloads by name, and how a name, a seed, arrivals and settings become a plan.

Owns the list of workloads, and what is the same for all: arrivals, duration, the number of sessions. Must never draw
anything itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice, takewhile
from types import MappingProxyType
from typing import Any

import msgspec

from loadgen.plans.agents import Agents, agents
from loadgen.plans.arrivals import MOST_SESSIONS, Arrivals, read_arrivals, start_times
from loadgen.plans.chat import Chat, chat
from loadgen.plans.draws import Times
from loadgen.plans.plan import Plan, Session
from loadgen.plans.rag import Rag, rag
from loadgen.plans.settings import read_settings
from loadgen.plans.shared_prefix import SharedPrefix, shared_prefix
from loadgen.plans.trace import Trace, read_requests, trace
from loadgen.plans.universal import Universal, universal

DURATION_S = 30.0
CLOSED_SESSIONS_PER_S = 4
"""So many sessions a place and second are made for a closed loop, unless their number is given."""
_AFTER_LAST_S = 1e-3  # a plan of a trace's own times is just long enough for its last request


class Workload(msgspec.Struct, frozen=True):
    """`build` makes the sessions of Times from parameters; a trace has times of its own and is built otherwise."""

    description: str
    parameters: type[msgspec.Struct]
    arrivals: str
    growing: bool = False
    build: Callable[[Any, Times], Iterator[Session]] | None = None


WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        "trace": Workload("requests of a recorded trace", Trace, "trace"),
        "shared-prefix": Workload(
            "prefixes that many requests share, popular by Zipf", SharedPrefix, "poisson:8", build=shared_prefix
        ),
        "chat": Workload("conversations of several turns", Chat, "poisson:2", True, chat),
        "rag": Workload("several questions each about popular documents", Rag, "poisson:2", True, rag),
        "agents": Workload("tool loops: one prefix a kind, many short turns", Agents, "poisson:1", True, agents),
        "universal": Workload("all share the first block and nothing else", Universal, "poisson:4", build=universal),
    }
)


def make_plan(
    workload: str,
    *,
    seed: int = 1,
    arrivals: str | None = None,
    duration_s: float | None = None,
    sessions: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of these options; equal options give equal plans.

    `arrivals` is a spec (see `arrivals`), by default the workload's. `duration_s` is by default 30 s, or a trace's own;
    `sessions` is how many there are at most. `settings` are the workload's parameters by name, as values or strings.
    Raises ValueError that names what is wrong and says what is allowed, TraceError (a ValueError) for a bad trace.
    """
    if workload not in WORKLOADS:
        raise ValueError(f"workload: {workload!r} is none; there are {', '.join(WORKLOADS)}")
    if duration_s is not None and not (math.isfinite(duration_s) and duration_s > 0):
        raise ValueError(f"duration_s: {duration_s:g} is not a number of seconds above 0")
    if sessions is not None and sessions < 1:
        raise ValueError(f"sessions: {sessions} is not a whole number of at least 1")
    chosen = WORKLOADS[workload]
    read = read_arrivals(arrivals or chosen.arrivals)
    parameters = read_settings(chosen.parameters, settings or {})
    if isinstance(parameters, Trace):
        made = _from_trace(parameters, read, duration_s, seed, sessions)
    else:
        made = _from_draws(chosen, parameters, read, duration_s, seed, sessions)
    common = {"arrivals": arrivals or chosen.arrivals, "duration_s": duration_s, "sessions": sessions}
    return Plan(
        workload=workload,
        seed=seed,
        parameters=common | msgspec.to_builtins(parameters),
        duration_s=_length(made, duration_s, read),
        sessions=tuple(made),
        growing=chosen.growing,
        concurrency=read.concurrency,
    )


def make_again(workload: str, seed: int, parameters: Mapping[str, Any]) -> Plan:
    """The plan whose `parameters` these are; a trace's file must still lie where it lay."""
    settings = dict(parameters)
    common = {name: settings.pop(name, None) for name in ("arrivals", "duration_s", "sessions")}
    return make_plan(workload, seed=seed, settings=settings, **common)


def _from_trace(
    parameters: Trace, arrivals: Arrivals, duration_s: float | None, seed: int, sessions: int | None
) -> list[Session]:
    starts: Iterable[float] | None = None
    if arrivals.kind == "closed":
        starts = (0.0 for _ in range(MOST_SESSIONS))
    elif arrivals.kind != "trace":
        starts = start_times(arrivals, duration_s or DURATION_S, seed)
    ends = math.inf if duration_s is None else duration_s
    every = trace(parameters, read_requests(parameters), starts)
    made = list(islice(takewhile(lambda session: session.start_s < ends, every), sessions))
    if not made:
        raise ValueError(f"file: {parameters.file} holds no request in the stretch that was asked for")
    return made


def _from_draws(
    workload: Workload,
    parameters: msgspec.Struct,
    arrivals: Arrivals,
    duration_s: float | None,
    seed: int,
    sessions: int | None,
) -> list[Session]:
    if workload.build is None or arrivals.kind == "trace":
        raise ValueError("arrivals: only the workload trace has times of its own; use poisson:RATE or another form")
    lasts = duration_s or DURATION_S
    if arrivals.concurrency is None:
        starts = start_times(arrivals, lasts, seed)[:sessions]
    elif getattr(parameters, "causal", True):
        enough = math.ceil(arrivals.concurrency * max(1.0, lasts * CLOSED_SESSIONS_PER_S))
        if (sessions or enough) > MOST_SESSIONS:
            raise ValueError(f"sessions: {sessions or enough} are too many for one plan; give {MOST_SESSIONS} at most")
        starts = (0.0,) * (sessions or enough)
    else:
        raise ValueError("causal: in a closed loop no time is fixed; leave it true, or use an open form of arrivals")
    if not starts:
        raise ValueError(f"arrivals: no session starts within {lasts:g} s; raise the rate or the duration")
    return list(workload.build(parameters, Times(seed, lasts, starts)))


def _length(made: list[Session], duration_s: float | None, arrivals: Arrivals) -> float:
    if duration_s is not None:
        return duration_s
    return made[-1].start_s + _AFTER_LAST_S if arrivals.kind == "trace" else DURATION_S
