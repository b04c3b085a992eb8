"""Other routers' published rules, written anew from their documentation and source, to compare with.

Owns the `like_*` policies and `longest_prefix`. Each gets what our own policies get: exact overlaps, and a ledger that
is booked at once and shared between routers. That is mostly more than the originals see (trees of text once sent,
metrics polled at intervals, each router's own bookings only), so a comparison flatters them. Left out everywhere:
adapters, storage behind the GPU, disaggregated prefill, priorities. Ties break at random, also where an original takes
the first. Sources are public repositories on GitHub, with the commit that was read.

Must never do I/O, read a clock, or change a load.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from random import Random

from scoring.by_load import open_requests
from scoring.decision import Choice, Query
from scoring.ledger import ReplicaLoad
from scoring.ties import least, least_of


class LongestPrefix:
    """Whoever holds most of the prompt, whatever its load. Where all prompts share a first block, all go to the replica
    that got the first: it shows why load must count.
    """

    name = "longest_prefix"

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        return Choice(least([-overlap for overlap in overlaps], self._rng), "longest overlap")


class LikeDynamo:
    """NVIDIA Dynamo's KV router with its defaults: least

        max(active prefill + prompt - overlap, 0) + active KV + prompt

    Source: ai-dynamo/dynamo, docs/components/router/router-concepts.md ("Cost Calculation", 03037af) and
    lib/kv-router/src/scheduling/selector/default.rs (07a6c9c). Defaults: prefill_load_scale 1, overlap credit 1 without
    decay, weight of active requests 0, temperature 0.

    Costs are in tokens here, in blocks there. Simplified: Dynamo counts a block that several open requests share once,
    and leaves blocks of the request that are in use there out of its KV; this ledger knows sums only, so
    `context_tokens` counts them every time.
    """

    name = "like_dynamo"

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        prompt = query.prompt_tokens
        costs: list[float] = [
            max(load.queued_tokens + prompt - overlap, 0) + load.context_tokens + prompt
            for load, overlap in zip(loads, overlaps, strict=True)
        ]
        return Choice(least(costs, self._rng), "least prefill and KV, in tokens", costs)


class LikeSglang:
    """SGLang's router, policy cache_aware: while loads are uneven (spread above 64 requests, and the highest above 1.5
    times the lowest) the fewest open requests; else whoever holds most of the prompt if that is more than 30 % of it;
    else the fewest open requests.

    Source: sgl-project/sglang, sgl-model-gateway/src/policies/cache_aware.rs (053b63f); thresholds, the command line's
    defaults, from docs/advanced_features/sgl_model_gateway.md (0f4513c). Older versions, and still the text at the head
    of that file, take the replica with the smallest tree when too little matches.

    Simplified: the match is of tokens that are cached, not of characters that were once sent.
    """

    name = "like_sglang"
    cache_threshold = 0.3
    balance_abs_threshold = 64
    balance_rel_threshold = 1.5

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        running = open_requests(loads)
        low, high = min(running), max(running)
        if high - low > self.balance_abs_threshold and high > low * self.balance_rel_threshold:
            return Choice(least(running, self._rng), "uneven loads: fewest open requests")
        if max(overlaps) > self.cache_threshold * query.prompt_tokens:
            return Choice(least([-overlap for overlap in overlaps], self._rng), "longest overlap")
        return Choice(least(running, self._rng), "little cached: fewest open requests")


class LikeLlmd:
    """llm-d's router as its optimized baseline configures it: keep the replicas that hold at least 80 % of the prompt,
    if there are any, unless the least busy of them is more than 18 s of prefill behind the least busy other one; of
    those kept, the fewest uncached tokens in flight, this request's included.

    Source: llm-d/llm-d-router, in pkg/epp/framework/plugins/scheduling: filter/prefixcacheaffinity/plugin.go (066c20e:
    affinityThreshold 0.80, maxTTFTPenaltyMs 18000, peakPrefillThroughput 15928 tokens/s, explorationProbability 0) and
    scorer/tokenload/token_load.go (1b30d10: queueThresholdTokens 4194304); composed as in llm-d/llm-d,
    guides/optimized-baseline/router/optimized-baseline.values.yaml (0a3b0c9).

    Costs are in tokens. Simplified: the share held is of tokens, not of whole blocks. 15928 tokens/s is llm-d's
    default, calibrated for Qwen3-32B on two H100; elsewhere llm-d asks operators to measure, and so should whoever
    compares.
    """

    name = "like_llmd"
    affinity_threshold = 0.8
    max_ttft_penalty_s = 18.0
    queue_threshold_tokens = 4_194_304

    def __init__(self, rng: Random, peak_prefill_tokens_per_s: float = 15_928.0) -> None:
        self._rng = rng
        self._penalty_tokens = self.max_ttft_penalty_s * peak_prefill_tokens_per_s

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        prompt = query.prompt_tokens
        costs: list[float] = [
            min(load.queued_tokens + prompt - overlap, self.queue_threshold_tokens)
            for load, overlap in zip(loads, overlaps, strict=True)
        ]
        enough = max(self.affinity_threshold * prompt, 1)
        warm = [position for position, overlap in enumerate(overlaps) if overlap >= enough]
        if warm and not self._too_busy(loads, set(warm)):
            return Choice(least_of(warm, costs, self._rng), "fewest tokens in flight of those with the prefix", costs)
        return Choice(least(costs, self._rng), "fewest tokens in flight", costs)

    def _too_busy(self, loads: Sequence[ReplicaLoad], warm: set[int]) -> bool:
        if len(warm) == len(loads):
            return False
        of_warm = min(loads[position].queued_tokens for position in warm)
        of_others = min(load.queued_tokens for position, load in enumerate(loads) if position not in warm)
        return of_warm - of_others > self._penalty_tokens


class LikeLlmdScorers:
    """llm-d's router as its other guides configure it: the highest weighted sum of three scores from 0 to 1. Queue
    length, weight 2 (shortest 1, longest 0, linear between; equal queues all 1); free KV cache, 2; share of the prompt
    held, 3.

    Source: llm-d/llm-d-router, in pkg/epp/framework/plugins/scheduling/scorer: queuedepth/queue.go and
    kvcacheutilization/kvcache_utilization.go (2342697), prefix; weights as in llm-d/llm-d,
    guides/optimized-baseline/router/optimized-baseline-trtllm.values.yaml (2ad7f91).

    Costs are what is missing to the full score of 7. Simplified: requests without a first byte stand for the engine's
    own queue, and the prompt tokens of open requests over the capacity for its KV usage (unknown capacity counts as
    free). Left out: that file's fourth scorer, which hands prompts cached nowhere to whoever had none the longest.
    """

    name = "like_llmd_scorers"
    queue_weight = 2.0
    kv_weight = 2.0
    prefix_weight = 3.0

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        shortest = min(load.waiting for load in loads)
        spread = max(load.waiting for load in loads) - shortest or 1
        prompt = query.prompt_tokens or 1
        costs = []
        for load, overlap in zip(loads, overlaps, strict=True):
            capacity = load.capacity_tokens
            usage = min(load.context_tokens / capacity, 1.0) if capacity else 0.0
            cost = self.queue_weight * (load.waiting - shortest) / spread + self.kv_weight * usage
            costs.append(cost + self.prefix_weight * (1.0 - overlap / prompt))
        return Choice(least(costs, self._rng), "highest weighted score", costs)


class LikeAibrix:
    """AIBrix's prefix-cache routing: of the replicas that hold any of the prompt and have at most mean + 1 standard
    deviation open requests, whoever holds most (in whole percent; among equals the fewest open requests); else the
    fewest open requests. While loads are very uneven (highest above 2 · (mean + 1), and 8 or more above the lowest),
    only the replicas with the lowest load can match.

    Source: vllm-project/aibrix, pkg/plugins/gateway/algorithms/prefix_cache.go (01de8a5), with its defaults (standard
    deviation factor 1, imbalance factor 2.0, least gap 8). Older versions went to the fewest open requests whenever the
    gap exceeded 8.

    Simplified: overlaps are of cached tokens, not of pieces of text that were once sent.
    """

    name = "like_aibrix"
    imbalance_factor = 2.0
    imbalance_gap = 8

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, query: Query, loads: Sequence[ReplicaLoad], overlaps: Sequence[int]) -> Choice:
        running = open_requests(loads)
        low, high, mean = min(running), max(running), sum(running) / len(running)
        uneven = high > self.imbalance_factor * (mean + 1) and high - low >= self.imbalance_gap
        most = mean + sqrt(sum((count - mean) ** 2 for count in running) / len(running))
        percents = [100 * overlap // max(query.prompt_tokens, 1) for overlap in overlaps]
        fit = [
            position
            for position, count in enumerate(running)
            if overlaps[position] and count <= most and not (uneven and count > low)
        ]
        if not fit:
            return Choice(least(running, self._rng), "fewest open requests")
        best = max(percents[position] for position in fit)
        matching = [position for position in fit if percents[position] == best]
        return Choice(least_of(matching, running, self._rng), "longest overlap of those not too busy")
