"""What replicas say that they computed: their own counters, as a difference over a run.

Owns which counters are read, under vLLM's names. Must never be read while a run is under way, nor stand for a replica
that others than the run may ask.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from loadgen.reports.schema import Computed
from loadgen.runs.probe import StandFailed, fetch

REQUESTS, PROMPT, CACHED = "vllm:request_success_total", "vllm:prompt_tokens_total", "vllm:prefix_cache_hits_total"
# One that an event stopped never answers.
ANSWER_S = 3.0
NOT_OURS = "replicas that were not started here may be asked by others too"

Counters = Mapping[str, float]  # by their names


class Work(NamedTuple):
    """What each replica computed, by its name; or else why that is not known."""

    computed: dict[str, Computed]
    unknown: str = ""


class Meter:
    """Of the replicas that were started here; `replicas` has their URLs by name, and may grow meanwhile."""

    def __init__(self, replicas: Mapping[str, str]) -> None:
        self._replicas = replicas
        self._before: dict[str, Counters] = {}
        self._unknown = "" if replicas else NOT_OURS

    async def begin(self) -> None:
        """The work counts from here."""
        self._before = await self._read()

    async def work(self) -> Work:
        """Since `begin`. A replica that was not there then began with nothing."""
        after = await self._read()
        if self._unknown:
            return Work({}, self._unknown)
        return Work({name: _difference(self._before.get(name, {}), counters) for name, counters in after.items()})

    async def _read(self) -> dict[str, Counters]:
        """By replica; of none once one did not tell."""
        if self._unknown:
            return {}
        try:
            return {name: await _counters(name, url) for name, url in tuple(self._replicas.items())}
        except StandFailed as error:
            self._unknown = str(error)
            return {}


async def _counters(name: str, url: str) -> Counters:
    try:
        text = (await fetch(f"{url}/metrics", {}, ANSWER_S)).decode(errors="replace")
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except StandFailed as error:
        raise StandFailed(f"{name} did not tell its counters: {error}") from None
    except ValueError as error:
        raise StandFailed(f"{name}: {url}/metrics cannot be read: {error}") from None
    sums: defaultdict[str, float] = defaultdict(float)
    for sample in samples:
        sums[sample.name] += sample.value
    if missing := {PROMPT, CACHED} - sums.keys():
        raise StandFailed(f"{name} has no counter {min(missing)} at {url}/metrics")
    return sums


def _difference(before: Counters, after: Counters) -> Computed:
    requests, prompt, cached = (
        round(after.get(name, 0.0) - before.get(name, 0.0)) for name in (REQUESTS, PROMPT, CACHED)
    )
    return Computed(requests, prompt, cached)
