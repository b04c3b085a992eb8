"""The audit that never ends: now and then, a few blocks of one replica are compared with what it holds.

Owns its one task, what it counted, and which replicas proved wrong. Must never be on a request's way, nor take a
network that fails for a replica that is wrong.

A replica whose reports prove wrong gets one chance: its block list is fetched anew. If it is wrong again, it is
demoted: its reports are not believed until it joins as a new incarnation.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

import aiohttp
from prometheus_client.core import CounterMetricFamily, Metric

from radix.tasks import end_tasks
from router.fleet import Fleet, Replica, State
from router.spot_check import Believed, CheckFailed, Found, NotAsked, SpotCheck

log = logging.getLogger("radixgate.audit")

FEWEST = 50  # blocks looked at; fewer say nothing
TOLERATED = 0.02


class _Standing:
    """What was found of one incarnation. `turn` is that of its last audit."""

    __slots__ = ("closed", "epoch", "next", "turn", "warned")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.turn = -1
        self.next = False  # it is to be looked at before the others
        self.warned = False
        self.closed = False  # it is left alone: demoted, or it cannot be asked


class Auditor:
    """`audited`, `false_positives` and `false_negatives` count blocks, by the names of replicas.

    - `believed` gives the index and the replica's id in it now; None while the router does not claim to know what the
      replica holds: it makes no reports or is not believed, or the way of its reports is known to be interrupted.
    - `resync` has the replica's block list fetched anew, soon; `demote` is told the reason.
    - Every `interval_s` one replica is looked at; `confirm_s` is what a report may need on its way.
    """

    def __init__(
        self,
        fleet: Fleet,
        believed: Believed,
        http: aiohttp.ClientSession,
        resync: Callable[[Replica], None],
        demote: Callable[[Replica, str], None],
        *,
        interval_s: float = 30.0,
        confirm_s: float = 1.5,
        rng: Random | None = None,
    ) -> None:
        self.audited: Counter[str] = Counter()
        self.false_positives: Counter[str] = Counter()
        self.false_negatives: Counter[str] = Counter()
        self._fleet = fleet
        self._believed = believed
        self._http = http
        self._resync = resync
        self._demote = demote
        self._interval_s = interval_s
        self._confirm_s = confirm_s
        self._random = rng or Random()
        self._standings: dict[Replica, _Standing] = {}
        self._turn = 0
        self._task: asyncio.Task[None] | None = None
        fleet.subscribe(self._on_change)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            await end_tasks(self._task)

    def metrics(self) -> Iterator[Metric]:
        """For Prometheus."""
        for name, text, counts in (
            ("audited_blocks", "Blocks that were compared with what their replica holds.", self.audited),
            ("audit_false_positives", "Of these, reported but not held.", self.false_positives),
            ("audit_false_negatives", "Of these, held but not reported.", self.false_negatives),
        ):
            family = CounterMetricFamily(f"radixgate_{name}", text, labels=["replica"])
            for replica, count in counts.items():
                family.add_metric([replica], count)
            yield family

    async def _run(self) -> None:
        await asyncio.sleep(self._random.random() * self._interval_s)  # not all routers of a fleet at once
        while True:
            chosen = self._choose()
            if chosen is not None:
                await self._attempt(*chosen)
            await asyncio.sleep(self._interval_s)

    def _choose(self) -> tuple[Replica, _Standing] | None:
        """One that proved wrong lately, else the one whose last audit is the oldest."""
        open_ones = [
            (replica, standing)
            for replica in self._fleet
            if (standing := self._standing(replica)) is not None and not standing.closed
        ]
        if not open_ones:
            return None
        replica, standing = min(open_ones, key=lambda each: (not each[1].next, each[1].turn))
        self._turn += 1
        standing.turn, standing.next = self._turn, False
        return replica, standing

    async def _attempt(self, replica: Replica, standing: _Standing) -> None:
        try:
            check = SpotCheck(replica, standing.epoch, self._believed, self._http, self._random)
            found = await check.run(self._confirm_s)
            if self._standing(replica) is standing:  # else it left meanwhile, or came back as another
                self._count(replica, found)
                self._judge(replica, standing, found)
        except NotAsked:
            standing.closed = True
            log.info("replica %s cannot be audited: it does not tell which blocks it holds", replica.name)
        except (CheckFailed, aiohttp.ClientError, OSError, TimeoutError) as error:
            log.debug("replica %s: no audit this time: %s", replica.name, error or type(error).__name__)
        except Exception:
            log.exception("replica %s: an audit failed", replica.name)

    def _count(self, replica: Replica, found: Found) -> None:
        self.audited[replica.name] += found.looked_at
        self.false_positives[replica.name] += found.false_positives
        self.false_negatives[replica.name] += found.false_negatives

    def _judge(self, replica: Replica, standing: _Standing, found: Found) -> None:
        if found.looked_at < FEWEST:
            return
        if found.wrong <= TOLERATED * found.looked_at:
            standing.warned = False
        elif not standing.warned:
            standing.warned = standing.next = True
            log.warning("replica %s reports its blocks wrongly: %s; fetching its block list anew", replica.name, found)
            self._resync(replica)
        else:
            standing.closed = True
            log.error(
                "replica %s reports its blocks wrongly, even after its block list was fetched anew: %s. Its reports "
                "are not believed any more; until it restarts it is known only by what is routed to it, and more "
                "prompts will be computed again. `radixgate audit` shows what differs: look for reports that are lost "
                "or altered between it and this router, then restart it.",
                replica.name,
                found,
            )
            self._demote(replica, str(found))

    def _standing(self, replica: Replica) -> _Standing | None:
        """None when it cannot be audited now. A new incarnation begins with a clean slate."""
        said = replica.registration
        here = self._fleet.get(replica.name) is replica and replica.state is State.UP
        if not here or said is None or self._believed(replica) is None:
            return None
        standing = self._standings.get(replica)
        if standing is None or standing.epoch != said.epoch:
            standing = self._standings[replica] = _Standing(said.epoch)
        return standing

    def _on_change(self, replica: Replica) -> None:
        current = self._fleet.get(replica.name)
        if current is not replica:
            self._standings.pop(replica, None)
        if current is None:
            for counts in (self.audited, self.false_positives, self.false_negatives):
                del counts[replica.name]
