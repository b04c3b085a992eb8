"""`make gpu-bench`: what the GPU engine reaches, beside what the card can do; one table, and build/gpu_bench.json.

Owns the command, the order of the sections and the time each may take. Must never import torch by itself: every section
runs in a process of its own (sections.py).

    python -m loadgen.gpu --json build/gpu_bench.json      # a GPU; within ten minutes; nothing is fetched
    python -m loadgen.gpu --smoke --device cpu             # no GPU: tiny shapes, to see that the command works
    python -m loadgen.gpu --show build/gpu_bench.json      # the table of an earlier run
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from rich.console import Console

from loadgen.gpu.report import (
    Ceilings,
    Failure,
    NotAReport,
    Report,
    Row,
    Section,
    ceilings_of,
    markdown,
    quantity,
    read_json,
    table,
    verdicts_on,
    write_json,
)
from loadgen.gpu.sections import Case, News, Plan, Setting, run_section

TIME_S = 560.0
GRACE_S = 45.0  # for the case under way when a section's time is up
END_S = 15.0  # the same, when the time of all is up
WIDTH = 200  # of the table, where there is no terminal to fit it to


def _ceilings(setting: Setting) -> Iterable[Case]:
    from loadgen.gpu import ceilings

    return ceilings.cases(setting)


def _decode(setting: Setting) -> Iterable[Case]:
    from loadgen.gpu import attention

    return attention.decode_cases(setting)


def _prefill(setting: Setting) -> Iterable[Case]:
    from loadgen.gpu import attention

    return attention.prefill_cases(setting)


def _engine(setting: Setting) -> Iterable[Case]:
    from loadgen.gpu import engine

    return engine.cases(setting)


BOUND = "SDPA (flash, cuDNN) reads contiguous KV: an upper bound"

# A section's time is its share of the whole, and what those before it left over.
PLANS = (
    Plan("ceilings", "Ceilings of this card, measured first", 35, _ceilings),
    Plan("decode", f"Decode attention: KV bytes a second. {BOUND}", 130, _decode),
    Plan("prefill", f"Prefill attention, causal: visible FLOP a second. {BOUND}", 85, _prefill),
    Plan("engine", "Llama-3.1-8B shape, random weights, through scheduler and runner", 310, _engine),
)
CEILINGS = PLANS[0]


@click.command(help="Measure the GPU engine beside what the card can do.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here, too."
)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table as Markdown.")
@click.option(
    "--show", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Show an earlier run's JSON."
)
@click.option(
    "--only",
    type=click.Choice([plan.name for plan in PLANS[1:]]),
    multiple=True,
    help="Only these sections, after the ceilings.",
)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--smoke", is_flag=True, help="Tiny shapes: it shows that the command works and measures nothing.")
@click.option("--seconds", type=click.FloatRange(min=1), default=TIME_S, show_default=True, help="For everything.")
def main(
    json_path: Path | None,
    as_markdown: bool,
    show: Path | None,
    only: tuple[str, ...],
    device: str,
    smoke: bool,
    seconds: float,
) -> None:
    if show is not None:
        _print(_earlier(show), as_markdown)
        return
    if device == "cpu" and not smoke:
        raise click.UsageError("A CPU measures nothing worth knowing here; add --smoke to see that the command works.")
    if device == "cuda" and (reason := _why_no_gpu()):
        _print(_report(Ceilings(), [], smoke, 0.0), as_markdown)
        raise click.ClickException(
            f"nothing was measured: {reason}. `--smoke --device cpu` runs every section on the CPU with tiny shapes."
        )
    plans = [plan for plan in PLANS if plan is CEILINGS or not only or plan.name in only]
    for report in _measured(plans, device, smoke, seconds):
        if json_path is not None:
            write_json(report, json_path)
    _print(report, as_markdown)
    if report.failed:
        raise click.ClickException("some of it failed; the table says what and why.")


def _earlier(path: Path) -> Report:
    try:
        return read_json(path)
    except NotAReport as error:
        raise click.ClickException(f"{error}.") from None


def _why_no_gpu() -> str:
    """Empty where there is one."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return "torch is not installed (pip install 'radixgate[replica]')"
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


def _measured(plans: list[Plan], device: str, smoke: bool, seconds: float) -> Iterator[Report]:
    """What is known after each section."""
    ceilings = Ceilings()
    sections: list[Section] = []
    started = time.monotonic()
    deadline, shares = started, sum(plan.share_s for plan in plans)
    for plan in plans:
        deadline += seconds * plan.share_s / shares
        last_moment = min(deadline + GRACE_S, started + seconds + END_S)
        sections.append(run_section(plan, Setting(device, smoke, ceilings), deadline, last_moment, _tell))
        if plan is CEILINGS:
            ceilings = ceilings_of(sections[0].rows)
        yield _report(ceilings, sections, smoke, time.monotonic() - started)


def _tell(news: News) -> None:
    """A line on stderr as soon as something is known: it is all that is left if the run is cut off."""
    match news:
        case Row():
            ratio = "" if news.ratio is None else f", {news.ratio:.1%} of the ceiling"
            line = f"{quantity(news.value, news.unit)}{ratio}"
        case Failure():
            line = f"FAILED: {news.why}"
        case _:
            line = f"not measured: {news.why}"
    print(f"{news.what}: {line}", file=sys.stderr, flush=True)


def _report(ceilings: Ceilings, sections: list[Section], smoke: bool, seconds: float) -> Report:
    rows = [] if smoke else [row for section in sections for row in section.rows]
    return Report(
        smoke=smoke,
        machine=_machine(),
        seconds=seconds,
        ceilings=ceilings,
        sections=sections,
        verdicts=verdicts_on(rows),
    )


def _machine() -> dict[str, str]:
    named = {"GPU": _gpu(), "Python": platform.python_version(), "platform": platform.platform()}
    for package in ("torch", "triton"):
        try:
            named[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            named[package] = "not installed"
    return named


def _gpu() -> str:
    """The first card and its driver, as nvidia-smi tells them."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return "none"
    return told[0].replace(",", ", driver") if told else "none"


def _print(report: Report, as_markdown: bool) -> None:
    if as_markdown:
        click.echo(markdown(report))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(table(report))
