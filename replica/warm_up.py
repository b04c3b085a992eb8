"""What a runner's first steps would have to wait for, done before the first request comes.

Owns which steps are run for it. On a GPU a kernel is compiled when it is first launched, which takes a second or more,
and some have variants for few and for many tokens; libraries load theirs, and memory is taken from the device. Must
never choose by what a kernel's limits are: steps of twice the size each meet every variant for a range of sizes whose
end is at least twice its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from replica.memory import heaviest_step
from replica.model_runner import ModelRunner, RunnerOptions


def warm_up(runner: ModelRunner, options: RunnerOptions) -> None:
    """Runs steps of all sizes. They leave their KV in block 0, so no request may have begun."""
    for tokens in sizes(options.max_batched_tokens):
        few = min(options.max_running, -(-tokens // options.max_model_len))
        runner.compute(heaviest_step(replace(options, max_batched_tokens=tokens, max_running=few)))
    runner.compute(heaviest_step(options))


def sizes(most: int) -> Iterator[int]:
    """1, 2, 4, and so on below `most`, and `most` itself."""
    size = 1
    while size < most:
        yield size
        size *= 2
    yield most
