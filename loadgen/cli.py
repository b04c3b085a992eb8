"""`radixgate demo`: the same readers, asked of the same fleet under each policy in turn, in one table.

Owns the command line and the order of the runs. Must never hold a result that was not measured in this very run.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click
import msgspec
import uvloop
from rich.console import Console

from loadgen.attended import CpuMeter, attended, machine_warnings
from loadgen.client import OpenLoopClient
from loadgen.display import Display
from loadgen.fleet import FleetParameters, local_fleet
from loadgen.processes import ChildFailed
from loadgen.report import Comparison, PolicyReport, Slo, WorkloadReport, failures, summarise, table, verdict
from loadgen.workloads import RagParameters, Workload, rag
from replica import tokenizer

POLICIES = ("round_robin", "least_load", "kv")
SUBJECT = "kv"
READERS = RagParameters()
FLEET = FleetParameters()
TERMINATED = 128 + signal.SIGTERM


@click.command()
@click.option("--policy", "policies", multiple=True, default=POLICIES, show_default=True, help="Repeat to compare.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here."
)
@click.option("--seed", default=1, show_default=True, help="Fixes documents, questions and times.")
@click.option(
    "--replicas", default=FLEET.replicas, show_default=True, type=click.IntRange(1, 64), help="Simulated replicas."
)
@click.option(
    "--duration",
    default=READERS.duration_s,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds of requests a policy.",
)
@click.option(
    "--rate",
    default=READERS.sessions_per_s,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="New readers a second.",
)
@click.option(
    "--speedup",
    default=FLEET.speedup,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Simulated hardware's speed, relative to its default.",
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
    console = Console()
    workload = demo_workload(RagParameters(duration_s=duration, sessions_per_s=rate), seed)
    fleet = FleetParameters(replicas=replicas, speedup=speedup)
    facts = _facts(workload, fleet, Slo())
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
    console.print(_caption(facts), highlight=False, soft_wrap=True)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            reports = runner.run(_compare(list(dict.fromkeys(policies)), workload, fleet, facts.slo, Display(console)))
    except ChildFailed as error:
        raise click.ClickException(str(error)) from None
    except asyncio.CancelledError:
        raise SystemExit(TERMINATED) from None
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(Comparison(reports, facts))) + b"\n")
    console.print(table(reports, facts.slo))
    _conclude(console, reports)


def demo_workload(parameters: RagParameters, seed: int) -> Workload:
    """Sized with the tokenizer that the simulated replicas use."""
    # Imported here so that `--help` need not wait for it.
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer.directory() / "tokenizer.json"))
    return rag(parameters, tokenizer.corpus(), seed, lambda text: len(encoder.encode(text).ids))


async def _compare(
    policies: list[str], workload: Workload, fleet: FleetParameters, slo: Slo, display: Display
) -> dict[str, PolicyReport]:
    """One run after the other, each on a new fleet with empty caches. Cancelled by SIGTERM."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    reports = {}
    with display:
        for policy in policies:
            reports[policy] = await _run(policy, workload, fleet, slo, display)
    return reports


async def _run(
    policy: str, workload: Workload, parameters: FleetParameters, slo: Slo, display: Display
) -> PolicyReport:
    bar = display.begin(policy, workload.parameters.duration_s)
    with CpuMeter() as meter:
        async with local_fleet(policy, parameters) as fleet:
            client = OpenLoopClient(fleet.url, fleet.model, workload)
            records = await attended(client, fleet, display.follow(bar, client))
    report = msgspec.structs.replace(summarise(records, slo, parameters.replicas), cores_busy=meter.cores_busy)
    display.end(bar, policy, report)
    return report


def _facts(workload: Workload, fleet: FleetParameters, slo: Slo) -> WorkloadReport:
    opened = {session.document for session in workload.sessions}
    return WorkloadReport(
        kind="multi-turn RAG",
        seed=workload.seed,
        sessions=len(workload.sessions),
        library_tokens=sum(document.tokens for document in workload.documents),
        opened_documents=len(opened),
        opened_tokens=sum(workload.documents[index].tokens for index in opened),
        parameters=workload.parameters,
        slo=slo,
        fleet=fleet,
    )


def _caption(facts: WorkloadReport) -> str:
    asked, fleet = facts.parameters, facts.fleet
    return (
        f"Workload: {facts.sessions} readers in {asked.duration_s:g} s (Poisson, seed {facts.seed}), "
        f"{asked.turns[0]}–{asked.turns[1]} questions each, {asked.think_s:g} s to think; "
        f"{asked.documents} documents of {asked.document_tokens[0]:,}–{asked.document_tokens[1]:,} tokens, "
        f"their popularity Zipf {asked.zipf:g}; the {facts.opened_documents} that get opened have "
        f"{facts.opened_tokens:,} tokens together.\n"
        f"Fleet: {fleet.replicas} simulated replicas (speed x{fleet.speedup:g}) with KV room for {fleet.kv_tokens:,} "
        f"tokens each.\n"
        f"Every policy starts with empty caches and has the same time; a follow-up waits for the answer before it, so "
        f"that a faster policy is asked more of them."
    )


def _conclude(console: Console, reports: dict[str, PolicyReport]) -> None:
    """The result in a sentence for each policy that kv was compared with; exit code 1 if anything failed."""
    if SUBJECT in reports:
        for other in reports:
            if other != SUBJECT:
                console.print(verdict(reports, SUBJECT, other), highlight=False)
    for warning in machine_warnings(reports):
        console.print(f"[yellow]Beware:[/] {warning}", highlight=False)
    wrong = failures(reports)
    if wrong:
        raise click.ClickException("\n".join(wrong))
