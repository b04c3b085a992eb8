"""From finished runs to a ComparisonReport.

Owns which runs are compared with which, and what a reader must be told beside the figures. Must never compute a
statistic: paired.py does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from loadgen.compare.balance import balance_metrics, unknown_balances
from loadgen.compare.estimates import ENOUGH_REPETITIONS
from loadgen.compare.paired import against
from loadgen.compare.rounds import Finished, Rounds, Rules
from loadgen.compare.schema import Against, ComparisonReport, Repetition, Side
from loadgen.compare.sides import SideSpec

Runs = Mapping[int, Finished]


def comparison_of(rounds: Rounds, sides: Sequence[SideSpec], rules: Rules) -> ComparisonReport | None:
    """Every other side against the first; None where not one repetition of all sides has finished."""
    baseline = sides[0]
    common = set.intersection(*(set(runs) for runs in rounds.finished.values()))
    if not common:
        return None
    finished = [(name, run.report) for name, runs in rounds.finished.items() for run in runs.values()]
    return ComparisonReport(
        baseline=baseline.name,
        sides=tuple(_side(side, rounds.finished[side.name]) for side in sides),
        against=tuple(_against(side, baseline, rounds.finished, rules) for side in sides[1:]),
        plan=rounds.finished[baseline.name][min(common)].report.plan,
        slo=rules.measure.slo,
        repetitions_asked=rules.repetitions,
        repetitions_done=len(common),
        order=tuple(rounds.order),
        interrupted=rounds.interrupted,
        notes=(*notes_of(sides, rules, len(common)), *unknown_balances(finished)),
    )


def shown_run(runs: Runs) -> Finished:
    """One run to stand for its side where only one can be shown: that with the middle TTFT p50."""
    ordered = sorted(runs.values(), key=lambda run: run.report.figures.ttft_p50_s or 0.0)
    return ordered[(len(ordered) - 1) // 2]


def notes_of(sides: Sequence[SideSpec], rules: Rules, repetitions: int) -> list[str]:
    """What the figures rest on."""
    notes = []
    if repetitions < ENOUGH_REPETITIONS:
        notes.append(
            f"with fewer than {ENOUGH_REPETITIONS} repetitions, intervals are from a bootstrap over sessions: they do "
            "not show how one run differs from the next; give --repetitions 3 or more"
        )
    elif not rules.vary_seed:
        notes.append(
            "every repetition asked the same schedule: intervals show how runs of it differ, not how schedules do "
            "(--vary-seed)"
        )
    asked_before = [side.name for side in sides if not side.fresh]
    if asked_before:
        again = "" if rules.vary_seed or repetitions < 2 else "; from the second repetition on it has seen every prompt"
        notes.append(f"{', '.join(asked_before)}: asked as it was found, with whatever its caches held{again}")
    if repetitions > 1:
        notes.append("plots, and figures of single runs, are of each side's repetition with the middle TTFT p50")
    return notes


def _side(side: SideSpec, runs: Runs) -> Side:
    repetitions = tuple(Repetition(run.repetition, run.position, run.report) for _, run in sorted(runs.items()))
    description = repetitions[0].report.target.description if repetitions else ""
    return Side(side.name, side.kind, description, side.fresh, repetitions)


def _against(side: SideSpec, baseline: SideSpec, finished: Mapping[str, Runs], rules: Rules) -> Against:
    theirs, ours = finished[baseline.name], finished[side.name]
    both = sorted(theirs.keys() & ours.keys())
    found = against(
        side.name,
        baseline.name,
        [ours[number].records for number in both],
        [theirs[number].records for number in both],
        rules.measure.slo,
        rules.asked.seed,
    )
    reports = ([runs[number].report for number in both] for runs in (theirs, ours))
    return msgspec.structs.replace(found, runs=(*found.runs, *balance_metrics(*reports)))
