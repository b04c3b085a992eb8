"""What the replica tells Prometheus, under vLLM's names, so that dashboards made for vLLM show it too.

Owns the registry. Must never be asked to decide anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from replica.request import Request
from replica.scheduler import Scheduler, Step

_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """Counts steps and requests; reads queues and cache usage from the scheduler when asked."""

    def __init__(self, scheduler: Scheduler, model: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_SchedulerState(scheduler, model))
        self._queries = self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", model)
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", model)
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests that have started.", model)
        self._generation_tokens = self._counter("generation_tokens", "Output tokens.", model)
        self._ends = Counter(
            "vllm:request_success",
            "Requests that ended, by reason.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )
        self._model = model
        self._step_tokens = self._histogram("iteration_tokens_total", "Tokens in a step.", model, _STEP_TOKENS)
        self._queue = self._histogram("request_queue_time_seconds", "Arrival to start.", model, _REQUEST_S)
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token.", model, _FIRST_TOKEN_S)
        self._itl = self._histogram("inter_token_latency_seconds", "Token to next token.", model, _TOKEN_S)
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to end.", model, _REQUEST_S)

    def stepped(self, step: Step, advanced: Sequence[Request], now: float) -> None:
        """A step has ended at `now` and gave each of `advanced` a token."""
        self._step_tokens.observe(step.tokens)
        self._generation_tokens.inc(len(advanced))
        for request in advanced:
            if request.last_token_at is None:
                request.first_token_at = now
                self._started(request)
            else:
                self._itl.observe(now - request.last_token_at)
            request.last_token_at = now

    def finished(self, request: Request) -> None:
        """The request has ended, for whatever reason."""
        reason = request.finish.value if request.finish else "abort"
        self._ends.labels(self._model, reason).inc()
        if request.finished_at is not None and request.first_token_at is not None:
            self._e2e.observe(request.finished_at - request.arrived_at)

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _started(self, request: Request) -> None:
        self._prompt_tokens.inc(request.prompt_tokens)
        self._queries.inc(request.prompt_tokens)
        self._hits.inc(request.cached or 0)
        if request.first_token_at is not None and request.admitted_at is not None:
            self._queue.observe(request.admitted_at - request.arrived_at)
            self._ttft.observe(request.first_token_at - request.arrived_at)

    def _counter(self, name: str, text: str, model: str) -> Counter:
        return Counter(f"vllm:{name}", text, ("model_name",), registry=self._registry).labels(model)

    def _histogram(self, name: str, text: str, model: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(f"vllm:{name}", text, ("model_name",), registry=self._registry, buckets=buckets)
        return histogram.labels(model)


class _SchedulerState(Collector):
    def __init__(self, scheduler: Scheduler, model: str) -> None:
        self._scheduler = scheduler
        self._model = model

    def collect(self) -> Iterable[Metric]:
        scheduler, pool = self._scheduler, self._scheduler.pool
        yield self._gauge("num_requests_running", "Requests in the running batch.", len(scheduler.running))
        yield self._gauge("num_requests_waiting", "Requests that wait for their start.", len(scheduler.waiting))
        yield self._gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", pool.referenced / pool.total)
        preemptions = CounterMetricFamily(
            "vllm:num_preemptions", "Requests sent back to the queue.", labels=["model_name"]
        )
        preemptions.add_metric([self._model], scheduler.preemptions)
        yield preemptions
        cache = GaugeMetricFamily(
            "vllm:cache_config_info", "The shape of the KV cache.", labels=["block_size", "num_gpu_blocks"]
        )
        cache.add_metric([str(pool.block_size), str(pool.total)], 1)
        yield cache

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name"])
        gauge.add_metric([self._model], value)
        return gauge
