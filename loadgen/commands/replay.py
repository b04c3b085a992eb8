"""`radixgate bench replay`: recorded decisions under other policies, or on a fleet of another size.

Owns the command line, its table and its JSON document. Must never send a request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import click
import msgspec
from rich.console import Console
from rich.table import Table

from loadgen.compare.receipts import ReceiptsError, Recorded, read_receipts
from loadgen.compare.regret import TYPICAL_OUTPUT
from loadgen.compare.rescoring import Assumed, Prediction, Rescored, rescore
from loadgen.compare.resimulation import Resimulated, resimulate
from loadgen.compare.surroundings import replicas_of
from loadgen.reports.schema import to_json
from loadgen.runs.options import Finite
from loadgen.runs.output import Output, write_file
from loadgen.runs.ready import make_rooms
from scoring.learned import PRIOR, Learned
from scoring.policies import POLICIES

SCHEMA = 1
PRINTED_WIDTH = 120
POSITIVE = Finite(0, min_open=True)


class ReplayReport(msgspec.Struct, frozen=True):
    """`recorded_under` counts receipts by policy. `policies` has `recorded`, which is what was chosen, and each policy
    asked for. `resimulated` is there with `replicas` only.
    """

    receipts: int
    span_s: float
    recorded_under: dict[str, int]
    recorded_replicas: tuple[str, ...]
    prediction: Prediction
    policies: dict[str, Rescored]
    replicas: int | None
    resimulated: dict[str, Resimulated] | None
    notes: tuple[str, ...]
    schema: int = SCHEMA


@click.command()
@click.argument("receipts", type=click.File("rb"))
@click.option(
    "--policy",
    "policies",
    multiple=True,
    default=("kv", "least_load"),
    show_default=True,
    type=click.Choice(list(POLICIES)),
    help="Repeat to compare.",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, 4096),
    help="Also simulate a fleet of this size, with the recorded requests. What it assumes is printed below.",
)
@click.option(
    "--capacity-tokens",
    default=0,
    type=click.IntRange(0),
    help="KV cache of one replica, for policies that look at it. Receipts do not say; 0: unknown.",
)
@click.option(
    "--output-tokens",
    default=TYPICAL_OUTPUT,
    show_default=True,
    type=click.IntRange(1),
    help="Of a request whose receipt does not say.",
)
@click.option(
    "--prefill-rate",
    default=1 / PRIOR.seconds_per_token,
    show_default=True,
    type=POSITIVE,
    help="Tokens a second of a replica of which receipts say too little.",
)
@click.option("--seed", default=1, show_default=True, help="Fixes how ties break.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
def replay(
    receipts: BinaryIO,
    policies: tuple[str, ...],
    replicas: int | None,
    capacity_tokens: int,
    output_tokens: int,
    prefill_rate: float,
    seed: int,
    json_file: Path | None,
) -> None:
    """What-if: the decisions of a router, from its RECEIPTS, under other policies.

    RECEIPTS is a file (- for standard input) with a receipt a line, as `bench run --receipts FILE` writes it, or as a
    router's control port answers to GET /receipts?limit=1024.

    \b
    curl -s 'http://localhost:9400/receipts?limit=1024' > receipts.json
    radixgate bench replay receipts.json --policy kv --policy least_load --policy like_dynamo
    radixgate bench replay receipts.json --replicas 8 --json out.json
    """
    names = list(dict.fromkeys(policies))
    file = str(getattr(receipts, "name", "standard input"))
    make_rooms({"--json": json_file}, {"RECEIPTS": Path(file)})
    try:
        found, notes = read_receipts(receipts.read(), file)
        assumed = Assumed(output_tokens, capacity_tokens, Learned(seconds_per_token=1 / prefill_rate), seed)
        rescored, prediction = rescore(found, names, assumed)
        simulated = None if replicas is None else resimulate(found, names, replicas, assumed)
    except ReceiptsError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}") from None
    report = ReplayReport(
        receipts=len(found),
        span_s=found[-1].at - found[0].at,
        recorded_under=dict(Counter(receipt.policy for receipt in found)),
        recorded_replicas=tuple(replicas_of(found)),
        prediction=prediction,
        policies=rescored,
        replicas=replicas,
        resimulated=simulated,
        notes=(*notes, *_notes(found, prefill_rate, replicas)),
    )
    failure = write_file("--json", json_file, lambda path: path.write_bytes(to_json(report)))
    console = Output(PRINTED_WIDTH)
    _print(report, console)
    if failure:
        raise click.ClickException(failure)
    console.check()


def _notes(receipts: Sequence[Recorded], prefill_rate: float, replicas: int | None) -> list[str]:
    notes = [
        "each decision is judged by itself, with the loads and overlaps of that moment: what another choice would have "
        "changed for later requests is not counted"
    ]
    if all(receipt.happened_s is None for receipt in receipts):
        notes.append(
            f"no receipt has a time to first token: {prefill_rate:g} tokens a second are assumed (--prefill-rate), and "
            "nothing can be compared with what happened"
        )
    if len({receipt.policy for receipt in receipts}) > 1:
        notes.append("the receipts are of several policies: their costs are in different units")
    if replicas is not None:
        notes.append(
            f"the fleet of {replicas} is simulated: prompts one after the other at the recorded pace; a replica that "
            "was there holds of each prompt what was recorded, whatever it gets now; a new one holds nothing, ever"
        )
    return notes


def _print(report: ReplayReport, console: Console) -> None:
    console.print(
        f"{report.receipts} decisions in {report.span_s:,.0f} s over {len(report.recorded_replicas)} replicas, "
        f"recorded under {', '.join(report.recorded_under)}",
        highlight=False,
        markup=False,
    )
    console.print(_rescored(report.policies))
    judged = report.prediction
    if judged.bias_s is not None and judged.error_p50_s is not None:
        console.print(
            f"Predictions: off by {judged.error_p50_s * 1e3:,.0f} ms at the median over {judged.judged} requests; what "
            f"happened was {abs(judged.bias_s) * 1e3:,.0f} ms {'later' if judged.bias_s > 0 else 'sooner'} on average.",
            highlight=False,
        )
    if report.resimulated is not None:
        console.print(_resimulated(report.resimulated, report.replicas or 0))
    for note in report.notes:
        console.print(f"Note: {note}.", highlight=False, markup=False)


def _rescored(policies: dict[str, Rescored]) -> Table:
    predicted = ("agrees", "predicted TTFT, s", "regret, ms", "p99", "regretted")
    happened = ("expected TTFT, s", "realised regret, ms", "hit rate", "balance")
    table = _by_policy("Recorded decisions, rescored", *predicted, *happened)
    for name, found in policies.items():
        table.add_row(
            name,
            _text(found.agreement, "{:.1%}"),
            _text(found.predicted_ttft_mean_s, "{:.3f}"),
            _text(found.regret_mean_s, "{:,.1f}", 1e3),
            _text(found.regret_p99_s, "{:,.1f}", 1e3),
            _text(found.regretted, "{:.1%}"),
            _text(found.expected_ttft_mean_s, "{:.3f}"),
            _text(found.realised_regret_mean_s, "{:,.1f}", 1e3),
            _text(found.hit_rate, "{:.1%}"),
            _text(found.balance_tokens, "{:.2f}"),
        )
    return table


def _resimulated(policies: dict[str, Resimulated], replicas: int) -> Table:
    columns = ("TTFT mean, s", "p50", "p99", "regret, ms", "p99", "hit rate", "balance", "requests")
    table = _by_policy(f"The same requests on {replicas} replicas, simulated", *columns)
    for name, found in policies.items():
        table.add_row(
            name,
            *(_text(seconds, "{:.3f}") for seconds in (found.ttft_mean_s, found.ttft_p50_s, found.ttft_p99_s)),
            *(_text(seconds, "{:,.1f}", 1e3) for seconds in (found.regret_mean_s, found.regret_p99_s)),
            _text(found.hit_rate, "{:.1%}"),
            _text(found.balance_tokens, "{:.2f}"),
            f"{found.requests:,}",
        )
    return table


def _by_policy(title: str, *columns: str) -> Table:
    table = Table(title=title)
    table.add_column("policy")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _text(value: float | None, form: str, scale: float = 1.0) -> str:
    return "–" if value is None else form.format(value * scale)
