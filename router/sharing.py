"""What a router shares with others through Redis, assembled: truth, membership, loads and predictions.

Owns the wiring and the lifetimes of all of it, and how it is shown. Must hold no logic of its own. Only a router that
was given a Redis imports this: it loads redis-py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack

import aiohttp
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from radix.index import PrefixIndex
from radix.mirror import Mirror
from radix.redis_link import open_link
from radix.redis_tree import RedisTree
from radix.tasks import end_tasks
from router.decide import Decider
from router.fleet import Fleet, Replica
from router.gossip import Gossip
from router.housekeeping import Housekeeper
from router.residency import Residency
from router.roster import Roster
from router.shared_joins import SharedJoins
from router.shared_truth import SharedTruth
from router.telemetry import Telemetry
from scoring.shared_loads import SharedLoads


class Sharing:
    """One router's share of a namespace. Nothing is asked of Redis before `start`.

    Raises RedisUrlError. A `private` router follows the fleet, but shares neither loads nor predictions.
    """

    def __init__(
        self, url: str, fleet: Fleet, telemetry: Telemetry, clock: Callable[[], float], *, private: bool
    ) -> None:
        self._fleet = fleet
        self._telemetry = telemetry
        self._clock = clock
        self._private = private
        self._stack = AsyncExitStack()
        self._link = open_link(url)
        self._stack.push_async_callback(self._link.close)
        self.tree = RedisTree(self._link)
        self.mirror = Mirror(self.tree, PrefixIndex(), clock)
        self.truth = SharedTruth(self.mirror)
        self._loads = SharedLoads()
        self._gossip: Gossip | None = None
        self._housekeeper = Housekeeper(self.tree, self.mirror, clock, lambda: self._loads.peers)

    def joins(self, roster: Roster, http: aiohttp.ClientSession) -> SharedJoins:
        return SharedJoins(self._fleet, roster, self.mirror, self.tree, http, self._telemetry, self._clock)

    def start(self, residency: Residency, decider: Decider) -> None:
        """Begin to follow Redis, whether it is there or not."""
        for work in (self.mirror.run(), self._housekeeper.run()):
            self._stack.push_async_callback(end_tasks, asyncio.get_running_loop().create_task(work))
        if not self._private:
            self._talk(residency, decider)
        self._telemetry.sources.append(self._metrics)

    async def close(self) -> None:
        await self._stack.aclose()

    @property
    def settled(self) -> bool:
        """Whether the fleet is known from Redis, or it is known that Redis is away."""
        return self.mirror.current or self._housekeeper.answers is False

    def health(self) -> dict[str, object]:
        """`state`: `current` (in step with Redis), `behind` (reading it anew), or `away` (going on from memory)."""
        state = "current" if self.mirror.current else "behind" if self._housekeeper.answers else "away"
        return {
            "state": state,
            "members": len(self.mirror.members),
            "lag_s": round(self.mirror.lag_s, 6),
            "peers": self._loads.peers,
        }

    def _talk(self, residency: Residency, decider: Decider) -> None:
        def routed_elsewhere(name: str, exact: int, keys: Sequence[int]) -> None:
            replica = self._fleet.get(name)
            if replica is not None:
                residency.routed(replica, keys, exact, self._clock())

        gossip = self._gossip = Gossip(self._link, self._loads, routed_elsewhere, self._clock)
        for replica in self._fleet:
            self._on_change(replica)
        self._fleet.subscribe(self._on_change)
        decider.on_routed = gossip.routed
        gossip.start()
        self._stack.push_async_callback(gossip.close)

    def _on_change(self, replica: Replica) -> None:
        if self._fleet.get(replica.name) is not replica:
            self._loads.forget(replica.load)
        elif replica.load.changed is None:
            said = replica.registration if replica.joined else None
            self._loads.add(replica.load, said.epoch if said is not None else 0)

    def _metrics(self) -> Iterator[Metric]:
        mirror, gossip = self.mirror, self._gossip
        up = bool(self._housekeeper.answers)
        yield GaugeMetricFamily("radixgate_redis_up", "Whether Redis answered when it was last asked.", value=up)
        yield GaugeMetricFamily("radixgate_mirror_current", "Whether the index follows Redis.", value=mirror.current)
        yield GaugeMetricFamily(
            "radixgate_mirror_lag_seconds", "Age of the newest change when it arrived here.", value=mirror.lag_s
        )
        yield CounterMetricFamily("radixgate_mirror_resyncs", "Times the tree was read anew.", value=mirror.resyncs)
        yield CounterMetricFamily("radixgate_mirror_batches", "Changes of the tree followed.", value=mirror.batches)
        yield CounterMetricFamily("radixgate_mirror_malformed", "Changes that made no sense.", value=mirror.malformed)
        if gossip is not None:
            yield GaugeMetricFamily("radixgate_peers", "Other routers that share their loads.", value=gossip.peers)
            yield CounterMetricFamily("radixgate_gossip_sent", "Messages to the other routers.", value=gossip.sent)
            yield CounterMetricFamily("radixgate_gossip_received", "Messages from others.", value=gossip.received)
            yield CounterMetricFamily(
                "radixgate_gossip_dropped", "Routed prompts that the others were not told of.", value=gossip.dropped
            )
