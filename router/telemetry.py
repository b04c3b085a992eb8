"""What the router counts and how it is shown to Prometheus.

Owns the counters. The hot path adds to plain numbers; Prometheus objects are made only when somebody scrapes. Every
name starts with `radixgate_`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
DECISION_SECONDS = (5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 2.5e-2)


class Distribution:
    """A histogram of plain numbers. `add` only appends; `fold` sorts in, at the sweep and before a scrape."""

    __slots__ = ("_fresh", "add", "bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self._fresh: list[float] = []
        self.add: Callable[[float], None] = self._fresh.append

    def fold(self) -> None:
        for value in self._fresh:
            self.counts[bisect_left(self.bounds, value)] += 1
        self.total += sum(self._fresh)
        self._fresh.clear()

    def buckets(self) -> Iterator[tuple[str, float]]:
        """Cumulative counts, as Prometheus wants them."""
        self.fold()
        reached = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            reached += count
            yield bound, reached


class ReplicaGauges:
    """One replica's figures at the moment of a scrape. `trusted` is None when it makes no reports."""

    __slots__ = ("blocks", "decoding", "name", "prefill_rate", "queued_tokens", "trusted", "up", "waiting")

    def __init__(
        self,
        name: str,
        up: bool,
        waiting: int,
        decoding: int,
        queued_tokens: int,
        prefill_rate: float,
        blocks: int,
        trusted: bool | None,
    ) -> None:
        self.name = name
        self.up = up
        self.waiting = waiting
        self.decoding = decoding
        self.queued_tokens = queued_tokens
        self.prefill_rate = prefill_rate
        self.blocks = blocks
        self.trusted = trusted


class Telemetry(Collector):
    """All counters of one router process."""

    def __init__(self) -> None:
        self.answers: defaultdict[str, defaultdict[int, int]] = defaultdict(_by_status)  # "": the router itself
        self.retries = 0
        self.clients_left = 0
        self.streams_broken = 0
        self.prompt_tokens = 0
        self.overlap_tokens = 0
        self.cached_tokens = 0
        self.routed: defaultdict[str, int] = defaultdict(int)  # by replica
        self.modes: defaultdict[str, int] = defaultdict(int)  # by how the prompt was read
        self.batches: Counter[str] = Counter()  # event batches, by outcome
        self.resyncs = 0
        self.ttft = Distribution(SECONDS)
        self.duration = Distribution(SECONDS)
        self.decision = Distribution(DECISION_SECONDS)
        self.replicas: Callable[[], Iterable[ReplicaGauges]] = lambda: ()
        self.index_blocks: Callable[[], int] = lambda: 0
        self.sources: list[Callable[[], Iterable[Metric]]] = []  # figures that other parts keep themselves

    def forget(self, replica: str) -> None:
        """The replica left the fleet: its figures end, lest names pile up."""
        self.answers.pop(replica, None)
        self.routed.pop(replica, None)

    def fold(self) -> None:
        """Bounds what the distributions keep unsorted."""
        for distribution in (self.ttft, self.duration, self.decision):
            distribution.fold()

    def collect(self) -> Iterator[Metric]:
        answers = CounterMetricFamily(
            "radixgate_responses",
            "Responses, by replica (empty: the router itself) and status.",
            labels=["replica", "status"],
        )
        for replica, by_status in self.answers.items():
            for status, count in by_status.items():
                answers.add_metric([replica, str(status)], count)
        yield answers
        yield _by_label("radixgate_routed", "Inference requests routed.", "replica", self.routed)
        yield _by_label("radixgate_prompts", "Prompts, by how their block keys were found.", "mode", self.modes)
        yield _by_label("radixgate_event_batches", "Event batches from replicas, by outcome.", "outcome", self.batches)
        for name, text, count in (
            ("retries", "Requests sent to another replica after one failed.", self.retries),
            ("clients_left", "Requests whose client left before the end.", self.clients_left),
            ("streams_broken", "Responses cut short by their replica.", self.streams_broken),
            ("prompt_tokens", "Prompt tokens routed (estimated in text mode).", self.prompt_tokens),
            ("overlap_tokens", "Prompt tokens believed to be cached on the chosen replica.", self.overlap_tokens),
            ("cached_tokens", "Prompt tokens that replicas said were cached.", self.cached_tokens),
            ("resyncs", "Times a replica's block list was fetched anew.", self.resyncs),
        ):
            yield CounterMetricFamily(f"radixgate_{name}", text, value=count)
        yield _histogram(
            "radixgate_time_to_first_byte_seconds", "From a request read whole to its first byte.", self.ttft
        )
        yield _histogram(
            "radixgate_request_duration_seconds", "From a request read whole to its last byte.", self.duration
        )
        yield _histogram("radixgate_decision_seconds", "Reading, hashing, matching and choosing.", self.decision)
        yield GaugeMetricFamily("radixgate_index_blocks", "Distinct blocks in the index.", value=self.index_blocks())
        yield from self._per_replica()
        for source in self.sources:
            yield from source()

    def _per_replica(self) -> Iterator[Metric]:
        families = {
            "up": GaugeMetricFamily("radixgate_replica_up", "Whether the replica takes requests.", labels=["replica"]),
            "waiting": GaugeMetricFamily(
                "radixgate_replica_waiting",
                "Requests without a first byte, of all routers that share a Redis.",
                labels=["replica"],
            ),
            "decoding": GaugeMetricFamily(
                "radixgate_replica_decoding", "Requests being answered, of all such routers.", labels=["replica"]
            ),
            "queued_tokens": GaugeMetricFamily(
                "radixgate_replica_queued_tokens",
                "Uncached prompt tokens without a first byte, of all such.",
                labels=["replica"],
            ),
            "prefill_rate": GaugeMetricFamily(
                "radixgate_replica_prefill_tokens_per_second",
                "What was learned of its speed from first tokens.",
                labels=["replica"],
            ),
            "blocks": GaugeMetricFamily("radixgate_replica_blocks", "Blocks the replica reported.", labels=["replica"]),
            "trusted": GaugeMetricFamily(
                "radixgate_replica_reports_trusted", "Whether the replica's reports are believed.", labels=["replica"]
            ),
        }
        for gauges in self.replicas():
            for field, family in families.items():
                value = getattr(gauges, field)
                if value is not None:
                    family.add_metric([gauges.name], float(value))
        yield from families.values()

    def render(self) -> bytes:
        """The Prometheus text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)


def _by_status() -> defaultdict[int, int]:
    return defaultdict(int)


def _by_label(name: str, text: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _histogram(name: str, text: str, distribution: Distribution) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text)
    family.add_metric([], list(distribution.buckets()), distribution.total)
    return family
