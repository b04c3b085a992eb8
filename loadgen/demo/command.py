"""`radixgate demo`: the same readers, asked of the same fleet under each policy in turn, in one table.

Owns the command line and the order of the runs. Must never hold a result that was not measured in this very run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console

from loadgen.demo.conclusion import conclude
from loadgen.demo.document import Readers, comparison, rag_of, readers_facts
from loadgen.demo.measuring import Measured, ended, measured
from loadgen.demo.readers import DURATION_S, RATE, chats, readers
from loadgen.demo.table import table, verdict
from loadgen.fleet import FleetParameters
from loadgen.foreground import printing, run_to_its_end
from loadgen.plans.plan import Plan
from loadgen.reports.schema import to_json
from loadgen.runs.live import Live
from loadgen.runs.options import POSITIVE, Finite
from loadgen.runs.ready import make_room
from loadgen.runs.stands import policy_stand

POLICIES = ("round_robin", "least_load", "kv")
SUBJECT = "kv"
FLEET = FleetParameters()


@click.command(context_settings={"show_default": True})
@click.option("--policy", "policies", multiple=True, default=POLICIES, help="Repeat to compare.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here."
)
@click.option("--seed", default=1, help="Fixes documents, questions and times.")
@click.option("--replicas", default=FLEET.replicas, type=click.IntRange(1, 64), help="Simulated replicas.")
@click.option("--duration", default=DURATION_S, type=Finite(1), help="Seconds of requests a policy.")
@click.option("--rate", default=RATE, type=POSITIVE, help="New readers a second.")
@click.option(
    "--speedup", default=FLEET.speedup, type=POSITIVE, help="Simulated hardware's speed, relative to its default."
)
def demo(
    policies: tuple[str, ...],
    json_file: Path | None,
    seed: int,
    replicas: int,
    duration: float,
    rate: float,
    speedup: float,
) -> None:
    """Compare routing policies: one router, simulated replicas, readers who ask follow-ups about shared documents."""
    console = printing()
    plan = _plan(seed, duration, rate)
    fleet = FleetParameters(replicas=replicas, speedup=speedup)
    facts = readers_facts(plan, fleet)
    if json_file is not None:
        make_room(json_file)
    console.print(_caption(plan, facts), highlight=False, soft_wrap=True)
    runs = run_to_its_end(_compare(list(dict.fromkeys(policies)), plan, fleet, console))
    if json_file is not None:
        json_file.write_bytes(to_json(comparison(runs, facts)))
    console.print(table(runs))
    _conclude(console, runs)


def _plan(seed: int, duration: float, rate: float) -> Plan:
    try:
        return readers(seed, duration, rate)
    except ValueError as error:
        reason = str(error).partition(": ")[2]
        raise click.BadParameter(f"{reason} (--duration).", param_hint="--rate") from None


async def _compare(
    policies: Sequence[str], plan: Plan, fleet: FleetParameters, console: Console
) -> dict[str, Measured]:
    """One run after the other, each on a new fleet with empty caches."""
    runs = {}
    with Live(console) as live:
        for policy in policies:
            live.say(policy, "starting the fleet")
            runs[policy] = await measured(policy_stand(policy, fleet, plan.seed), plan, chats(plan), live)
            console.print(ended(policy, runs[policy]), highlight=False)
    return runs


def _caption(plan: Plan, facts: Readers) -> str:
    asked, fleet = rag_of(plan), facts.fleet
    return (
        f"Workload: {facts.sessions} readers in {plan.duration_s:g} s (Poisson, seed {facts.seed}), "
        f"{asked.turns[0]}–{asked.turns[1]} questions each, {asked.think_s:g} s to think; "
        f"{asked.documents} documents of {asked.document_tokens[0]:,}–{asked.document_tokens[1]:,} tokens, "
        f"their popularity Zipf {asked.zipf:g}; the {facts.opened_documents} that get opened have "
        f"{facts.opened_tokens:,} tokens together.\n"
        f"Fleet: {fleet.replicas} simulated replicas (speed x{fleet.speedup:g}) with KV room for {fleet.kv_tokens:,} "
        f"tokens each.\n"
        f"Every policy starts with empty caches and has the same time; a follow-up waits for the answer before it, so "
        f"that a faster policy is asked more of them."
    )


def _conclude(console: Console, runs: Mapping[str, Measured]) -> None:
    """The result in a sentence for each policy that kv was compared with; exit code 1 if anything failed."""
    if SUBJECT in runs:
        for other in runs:
            if other != SUBJECT:
                console.print(verdict(runs, SUBJECT, other), highlight=False, soft_wrap=True)
    conclude(runs, console)
