"""What computes the answers, as the service sees it: a runner and what the rest must know of its model.

Owns the choice between a simulated model and a real one. Must never load torch unless a real one is to be served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from radix.chat import ChatTokenizer
from replica import tokenizer as bundled
from replica.runner import Runner
from replica.sampling_params import SamplingParams
from replica.settings import SIMULATED_KV_BLOCKS, SIMULATED_MODEL_LEN, Settings
from replica.simulated import Book, SimulatedRunner, first_eos

Progress = Callable[[int, int], None]
"""Told how much of how much has been loaded, in bytes."""


@dataclass(frozen=True, slots=True)
class Backend:
    """`runner` computes into `kv_blocks` blocks. `defaults`: what the model wants where clients say nothing.
    `logprobs`: whether the runner gives any. `eos_ids` end answers, beside the tokenizer's own. `close` ends what
    the runner holds on to.
    """

    runner: Runner
    kv_blocks: int
    max_model_len: int
    defaults: SamplingParams = field(default_factory=SamplingParams)
    logprobs: bool = False
    eos_ids: tuple[int, ...] = ()
    close: Callable[[], None] = lambda: None


def open_backend(settings: Settings, tokenizer: ChatTokenizer, progress: Progress | None = None) -> Backend:
    """Loads what the settings name; this may take minutes. Raises ModelError for a model that cannot be served, and
    ImportError without the packages that a real one needs.
    """
    if settings.source is None:
        return _simulated(settings, tokenizer)
    from replica.loading import load_backend

    return load_backend(settings, settings.source, tokenizer, progress)


def _simulated(settings: Settings, tokenizer: ChatTokenizer) -> Backend:
    runner = SimulatedRunner(
        Book.of(bundled.corpus(), tokenizer),
        settings.timing,
        eos=first_eos(tokenizer.eos_ids),
        speedup=settings.speedup,
    )
    blocks = settings.kv_blocks or SIMULATED_KV_BLOCKS
    room = blocks * settings.block_size
    return Backend(runner, blocks, settings.max_model_len or min(SIMULATED_MODEL_LEN, room))
