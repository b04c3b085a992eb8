"""What the samples of a step need besides logits: the parameters of each, as arrays.

Owns their form, and how they are gathered from the requests. It runs on the event loop. Must never wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replica.packing import Array
from replica.request import Request
from replica.rows import FREQUENCY, LOG_MIN_P, PRESENCE, REPETITION, TEMPERATURE, TOP_P, Rows
from replica.scheduler import Slice

Ints = NDArray[np.int64]

# The form of `Request.packed`.
PACKED = np.dtype("<u4")


class Draws(NamedTuple, Generic[Array]):
    """The parameters of a step's S samples, as numpy arrays on the host or as tensors on the device.

    `limited`: the rows with a top_k, `wanted`: those that want logprobs; greedy ones are only among the latter.
    `penalised` lists P rows; `repetition`, `frequency` and `presence` are theirs. `history` holds the token ids of
    their prompts, where those count, one after the other, and then those of their outputs; `lengths` says how many
    there are of each prompt and of each output. `pending` and `sources` add outputs that the host does not know yet:
    which of the P, and where the previous samples have the token.
    """

    seeds: Array  # int64 [S]
    positions: Array  # int64 [S], of the tokens to be drawn
    top_k: Array  # int64 [S]
    temperature: Array  # fp32 [S], 0: greedy
    top_p: Array  # fp32 [S]
    log_min_p: Array  # fp32 [S], -inf without
    nucleus: Array  # fp32 [S], the top_p of a drawn row without a top_k, else 1
    limited: Array  # int64
    wanted: Array  # int64
    penalised: Array  # int64 [P]
    repetition: Array  # fp32 [P]
    frequency: Array  # fp32 [P]
    presence: Array  # fp32 [P]
    history: Array  # int32 [N]
    lengths: Array  # int64 [2 P]
    pending: Array  # int64
    sources: Array  # int64


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step's samples need at all. `widest`: the largest top_k; `prompts`: how much of the history is of prompts;
    `likeliest`: how many logprobs each row wants beside the chosen one, -1 for none at all; empty if no row wants any.
    """

    greedy: bool
    drawn: bool
    widest: int
    nucleus: bool
    min_p: bool
    penalised: bool
    prompts: int
    likeliest: tuple[int, ...]


def gather(samplers: Sequence[Slice], rows: Rows, source: Callable[[Request], int]) -> tuple[Draws[Any], Plan] | None:
    """The parameters of these samples, in order; None when all are greedy and nothing else is wanted.

    `source` tells where the previous samples have the token of a request that is not known yet.
    """
    found = [rows[part.request] for part in samplers]
    if all(row.plain for row in found):
        return None
    where = np.array([row.index for row in found])
    floats, top_k, likeliest = rows.floats[where], rows.top_k[where], rows.likeliest[where]
    drawn = floats[:, TEMPERATURE] > 0
    limited = np.flatnonzero(drawn & (top_k > 0))
    nucleus = np.where(drawn & (top_k == 0), floats[:, TOP_P], np.float32(1))
    wanted = np.flatnonzero(likeliest >= 0)
    penalised = np.flatnonzero((floats[:, REPETITION] != 1) | floats[:, FREQUENCY:].any(axis=1))
    speakers = [samplers[row] for row in penalised.tolist()]
    history, lengths = _history(speakers)
    pending = [(index, source(part.request)) for index, part in enumerate(speakers) if _is_pending(part)]
    draws: Draws[Any] = Draws(
        seeds=rows.seeds[where],
        positions=np.array([part.start + part.count for part in samplers]),
        top_k=top_k,
        temperature=floats[:, TEMPERATURE],
        top_p=floats[:, TOP_P],
        log_min_p=floats[:, LOG_MIN_P],
        nucleus=nucleus,
        limited=limited,
        wanted=wanted,
        penalised=penalised,
        repetition=floats[penalised, REPETITION],
        frequency=floats[penalised, FREQUENCY],
        presence=floats[penalised, PRESENCE],
        history=history,
        lengths=lengths,
        pending=np.array([index for index, _ in pending], np.int64),
        sources=np.array([source for _, source in pending], np.int64),
    )
    plan = Plan(
        greedy=not drawn.all(),
        drawn=bool(drawn.any()),
        widest=int(top_k[limited].max(initial=0)),
        nucleus=bool((nucleus < 1).any()),
        min_p=bool((floats[:, LOG_MIN_P] > -np.inf).any()),
        penalised=bool(penalised.size),
        prompts=int(lengths[: len(speakers)].sum()),
        likeliest=tuple(likeliest.tolist()) if wanted.size else (),
    )
    return draws, plan


def _history(speakers: Sequence[Slice]) -> tuple[NDArray[np.int32], Ints]:
    """What these have said, and the lengths of the parts. Prompts count only where repetition is penalised."""
    prompts, outputs = [], []
    for part in speakers:
        # The tokens in their packed form, looked at and not copied: they cannot grow before these views are gone.
        said = np.frombuffer(part.request.packed, PACKED)
        counts = part.request.sampling.repetition_penalty != 1.0
        prompts.append(said[: part.request.prompt_tokens if counts else 0])
        outputs.append(said[part.request.prompt_tokens :])
    parts = prompts + outputs
    history = np.concatenate(parts, dtype=np.int32) if parts else np.empty(0, np.int32)
    return history, np.array([len(part) for part in parts], np.int64)


def _is_pending(part: Slice) -> bool:
    """Whether the last token of the slice is not known yet."""
    return part.start + part.count > len(part.request.tokens)
