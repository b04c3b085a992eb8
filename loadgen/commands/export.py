"""`radixgate bench export`: what `bench run` would ask, as a file that other load clients can play.

Owns the command line and the form: one JSON object a line, `timestamp` (milliseconds) and `payload` (the request's
body), which aiperf reads as a Mooncake trace. Must never write a schedule that depends on answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from loadgen.plans.plan import Plan
from loadgen.plans.prompts import Prompts
from loadgen.runs.asked import Asked
from loadgen.runs.options import plan_options
from loadgen.runs.output import write_file
from loadgen.runs.ready import make_rooms
from loadgen.runs.sender import every_body


@click.command()
@plan_options
@click.option("--model", required=True, help="What the requests ask for.")
@click.option(
    "--out", "file", required=True, type=click.Path(dir_okay=False, path_type=Path), help="One request a line."
)
def export(asked: Asked, model: str, file: Path) -> None:
    """Write the requests of a plan and when they are due, for another load client to send.

    \b
    radixgate bench export --workload universal --arrivals poisson:8 --duration 60 --model m --out asks.jsonl
    aiperf profile --custom-dataset-type mooncake_trace --input-file asks.jsonl --fixed-schedule ...

    Only for plans in which no request waits for an answer: an open loop, and turns at times of their own.
    """
    plan = asked.plan()
    if not _is_timed(plan) or asked.history == "real":
        raise click.UsageError(
            "some requests of this plan wait for answers, so that it cannot be written beforehand; use an open loop, "
            "--history planned and, for conversations, --set causal=false"
        )
    make_rooms({"--out": file}, {"--trace": asked.trace})
    prompts = asked.prompts(plan)
    if failure := write_file("--out", file, lambda path: _write(path, _timed(plan, prompts, model))):
        raise click.ClickException(failure)
    click.echo(f"{plan.requests} requests in {plan.duration_s:g} s: {file}")


def _write(path: Path, asks: Sequence[tuple[float, dict[str, object]]]) -> None:
    with path.open("wb") as lines:
        for at_s, body in asks:
            lines.write(msgspec.json.encode({"timestamp": round(at_s * 1e3, 3), "payload": body}) + b"\n")


def _is_timed(plan: Plan) -> bool:
    later = (turn for session in plan.sessions for turn in session.turns[1:])
    return plan.concurrency is None and all(turn.due_s is not None for turn in later)


def _timed(plan: Plan, prompts: Prompts, model: str) -> list[tuple[float, dict[str, object]]]:
    """By due time."""
    every = every_body(model)
    listed = []
    for session in plan.sessions:
        for number, turn in enumerate(session.turns):
            at_s = session.start_s if number == 0 or turn.due_s is None else turn.due_s
            listed.append((at_s, every | prompts.body(session, number, ())))
    return sorted(listed, key=lambda each: each[0])
