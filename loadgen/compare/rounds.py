"""The runs of a comparison: every side once a repetition, in an order that rotates.

Owns the order and what has finished. Must never let one side's run touch another's: they come one after the other, each
against servers of its own where we start them. Loses no finished run, whatever ends the comparison early.

The first side of a round may meet another machine than the last one, busier or warmer: so the order rotates (A B, B A),
and a difference is taken within a round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import msgspec

from loadgen.compare.regret import regret_mean_s
from loadgen.compare.sides import SideSpec
from loadgen.fleet import FleetParameters
from loadgen.plans.plan import Plan
from loadgen.plans.prompts import Prompts
from loadgen.processes import ChildFailed
from loadgen.records import Record
from loadgen.reports.schema import RunReport
from loadgen.runs.asked import Asked, fitting
from loadgen.runs.interrupts import Interrupted
from loadgen.runs.live import Live
from loadgen.runs.once import run_once
from loadgen.runs.options import Measure
from loadgen.runs.probe import StandFailed
from loadgen.runs.reporting import ideals_of, report_of
from loadgen.runs.runner import Runner
from loadgen.runs.stands import Stand
from loadgen.runs.target import Target


class Rules(msgspec.Struct, frozen=True):
    """What is the same for every side. With `vary_seed` each round asks a schedule of its own."""

    asked: Asked
    fleet: FleetParameters
    measure: Measure
    repetitions: int
    vary_seed: bool = False
    model: str = ""
    headers: dict[str, str] = {}


class Finished(NamedTuple):
    """One run to its end. Both numbers count from 0."""

    repetition: int
    position: int
    report: RunReport
    records: list[Record]


class Rounds:
    """Runs them once. `finished` has each side's runs by repetition, `order` the sides as they ran, and `interrupted`
    says why runs are missing; it is empty when none are. `on_finished` hears of each run that has finished; `check`
    raises Interrupted where what is worked out beside a run is not to be waited for.
    """

    def __init__(
        self,
        sides: Sequence[SideSpec],
        rules: Rules,
        live: Live,
        on_finished: Callable[[str, Finished], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.finished: dict[str, dict[int, Finished]] = {side.name: {} for side in sides}
        self.order: list[str] = []
        self.interrupted = ""
        self._sides = sides
        self._rules = rules
        self._live = live
        self._on_finished = on_finished
        self._check = check
        self._runner: Runner | None = None
        self._task: asyncio.Task[None] | None = None
        self._ideals: dict[tuple[int, int | None, int | None], dict[str, float | None]] = {}

    async def run(self) -> None:
        """Raises ChildFailed or StandFailed when not even a first run could be made; what user input is to blame for
        (BadCommand, ValueError, UsageError) always.
        """
        outer = asyncio.current_task()
        self._task = asyncio.create_task(self._all())
        try:
            await self._task
        except (ChildFailed, StandFailed) as error:
            if not self.order:
                raise
            self.interrupted = str(error)
        except asyncio.CancelledError:
            if not self.interrupted or (outer is not None and outer.cancelling()):
                raise
        if len(self.order) == self._rules.repetitions * len(self._sides):
            self.interrupted = ""  # it came too late to matter

    def stop(self, reason: str) -> None:
        """Ends the comparison now; the run under way does not count."""
        self.interrupted = self.interrupted or reason
        if self._runner is not None:
            self._runner.stop(reason)
        elif self._task is not None:
            self._task.cancel()

    async def _all(self) -> None:
        await self._check_urls()
        plan = prompts = None
        for repetition in range(self._rules.repetitions):
            if plan is None or prompts is None or self._rules.vary_seed:
                plan = self._rules.asked.plan(self._rules.asked.seed + repetition)
                prompts = self._rules.asked.prompts(plan)
            for position, side in enumerate(rotated(self._sides, repetition)):
                await self._one(side, plan, prompts, repetition, position)
                if self.interrupted:
                    return

    async def _check_urls(self) -> None:
        """A server that is not there is better known before the others have run."""
        for side in self._sides:
            if side.kind == "url":
                async with self._stand(side, self._rules.fleet, 0):
                    pass

    async def _one(self, side: SideSpec, plan: Plan, prompts: Prompts, repetition: int, position: int) -> None:
        rules, measure = self._rules, self._rules.measure
        self._live.say(side.name, f"repetition {repetition + 1} of {rules.repetitions} begins")
        seed = rules.asked.seed + repetition
        async with self._stand(side, fitting(rules.fleet, plan) if side.fresh else rules.fleet, seed) as stand:
            target = stand.target
            self._runner = Runner(target, plan, prompts, drain_s=measure.drain_s, session_header=measure.session_header)
            try:
                result = await run_once(self._runner, stand, measure.events, self._live.follow)
            finally:
                self._runner = None
            if result.interrupted is not None:
                self.interrupted = f"{side.name}, repetition {repetition + 1}: {result.interrupted}"
                return
            # Kept before the stand ends: a signal meanwhile must not cost a run that has finished.
            ideals = self._ideals_of(plan, prompts, target, result.records)
            regret = regret_mean_s(result.receipts)
            report = report_of(target, plan, result, measure, ideals, regret)
            finished = Finished(repetition, position, report, result.records)
            self.finished[side.name][repetition] = finished
            self.order.append(side.name)
            self._on_finished(side.name, finished)

    def _stand(self, side: SideSpec, fleet: FleetParameters, seed: int) -> AbstractAsyncContextManager[Stand]:
        return side.stand(fleet, seed, self._rules.model, self._rules.headers)

    def _ideals_of(
        self, plan: Plan, prompts: Prompts, target: Target, records: Sequence[Record]
    ) -> dict[str, float | None]:
        """In an open loop the same for all targets of equal memory. None of them once somebody wants to end."""
        if not self._rules.measure.ideals:
            return {}
        key = (plan.seed, target.replicas, target.capacity_tokens)
        if plan.concurrency is None and key in self._ideals:
            return self._ideals[key]
        try:
            self._ideals[key] = ideals_of(plan, prompts, target, records, self._check)
        except Interrupted:
            return {}
        return self._ideals[key]


def rotated(sides: Sequence[SideSpec], repetition: int) -> list[SideSpec]:
    """A B C, then B C A, then C A B, and so on."""
    first = repetition % len(sides)
    return [*sides[first:], *sides[:first]]
