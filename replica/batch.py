"""From a step to the arrays that a model computes it from.

Owns which token stands in which row: first the decoding requests, one token each, then the others. It runs on the event
loop and reads the requests as they are now. Must never touch the device or wait for it: the last token of a decoding
request may be known there alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replica.draws import PACKED, Draws, Ints, Plan, gather
from replica.packing import Array
from replica.request import Request
from replica.rows import Rows, padded_width
from replica.scheduler import Slice, Step

Padding = Callable[[int], int]
"""To how many rows so many decoding requests are padded, where all of a step decode."""


class Inputs(NamedTuple, Generic[Array]):
    """The arrays of a step of T tokens: D rows that decode, P requests that do not, S samples.

    `sources`: where in the samples of the step before a decoding row's token is, -1 where it stands in `tokens`.
    `last_rows`: the row of each sample among the T. The others are those of `ops.Layout`; `context_lens` and
    `block_tables` have the D first, `query_starts` is of the P.
    """

    tokens: Array  # int64 [T]
    positions: Array  # int64 [T]
    slots: Array  # int64 [T]
    sources: Array  # int64 [D]
    last_rows: Array  # int64 [S]
    context_lens: Array  # int32 [D + P]
    query_starts: Array  # int32 [P + 1]
    block_tables: Array  # int32 [D + P, width]


@dataclass(frozen=True, slots=True)
class Batch:
    """A step, ready for the device. Without `draws` and `plan` all samples are greedy and nothing else is wanted.

    `decodes`: rows that decode, those of padding included. `guesses`: whether a token comes from the step before.
    The longest are in tokens; contexts of decoding rows and of the others.
    """

    inputs: Inputs[NDArray[Any]]
    draws: Draws[NDArray[Any]] | None
    plan: Plan | None
    decodes: int
    prefills: int
    samples: int
    longest_query: int
    longest_decode: int
    longest_prefill: int
    guesses: bool


class Batcher:
    """Makes batches of steps, in the order in which they are run: of each it remembers who samples where.

    A step may hold `max_running` slices, of requests of at most `blocks` blocks.
    """

    def __init__(
        self,
        max_running: int,
        blocks: int,
        block_size: int,
        vocabulary: int,
        *,
        padding: Padding | None = None,
    ) -> None:
        self._max_running = max_running
        self._block_size = block_size
        self._vocabulary = vocabulary
        self._padding = padding
        self._rows = Rows(max_running, blocks)
        self._sampled: dict[Request, int] = {}

    def batch(self, step: Step) -> Batch:
        """Raises ValueError for a step that this runner was not made for; the next one may be right again."""
        if not 0 < len(step.slices) <= self._max_running:
            raise ValueError(f"a step of {len(step.slices)} requests; this runner takes 1 to {self._max_running}")
        self._rows.begin_step()
        decodes = [part for part in step.slices if part.is_decode]
        prefills = [part for part in step.slices if not part.is_decode] if len(decodes) < len(step.slices) else []
        samplers = [part for part in step.slices if part.samples] if prefills else decodes
        inputs = self._inputs(step, decodes, prefills)
        draws, plan = gather(samplers, self._rows, self._source) or (None, None)
        rows = len(inputs.sources)
        contexts = inputs.context_lens
        batch = Batch(
            inputs,
            draws,
            plan,
            decodes=rows,
            prefills=len(prefills),
            samples=len(samplers),
            longest_query=max((part.count for part in prefills), default=0),
            longest_decode=int(contexts[:rows].max(initial=0)),
            longest_prefill=int(contexts[rows:].max(initial=0)),
            guesses=bool(inputs.sources.max(initial=-1) >= 0),
        )
        self._sampled = {part.request: index for index, part in enumerate(samplers)}
        return batch

    def _inputs(self, step: Step, decodes: list[Slice], prefills: list[Slice]) -> Inputs[Any]:
        parts = decodes + prefills
        where = np.array([self._rows.of(part.request).index for part in parts])
        starts = np.array([part.start for part in parts])
        counts = np.array([part.count for part in parts])
        ends = counts.cumsum()
        tokens, sources = self._tokens(decodes, prefills, int(ends[-1]))
        # Of each token: which slice it belongs to, and its position in its request.
        owner = np.repeat(np.arange(len(parts)), counts)
        positions = np.arange(len(tokens)) + (starts - ends + counts)[owner]
        blocks, offsets = np.divmod(positions, self._block_size)
        contexts = starts + counts
        width = padded_width(-(-int(contexts.max()) // self._block_size))
        inputs: Inputs[Any] = Inputs(
            tokens=tokens,
            positions=positions,
            slots=self._rows.tables[where[owner], blocks].astype(np.int64) * self._block_size + offsets,
            sources=sources,
            last_rows=_last_rows(step, len(decodes), ends) if prefills else owner,
            context_lens=contexts.astype(np.int32),
            query_starts=np.append(0, ends[len(decodes) :] - len(decodes)).astype(np.int32),
            block_tables=self._rows.tables[where, :width],
        )
        if self._padding is not None and not prefills:
            return _padded(inputs, self._padding(len(decodes)))
        return inputs

    def _tokens(self, decodes: list[Slice], prefills: list[Slice], count: int) -> tuple[Ints, Ints]:
        """The tokens of the step, and the sources of those that are not known yet (0 stands in for them)."""
        known, sources = [], []
        for part in decodes:
            request = part.request
            if part.start < len(request.tokens):
                known.append(request.tokens[part.start])
                sources.append(-1)
            else:
                known.append(0)
                sources.append(self._source(request))
        tokens = np.empty(count, np.int64)
        tokens[: len(known)] = known
        end = len(known)
        for part in prefills:
            begin, end = end, end + part.count
            tokens[begin:end] = np.frombuffer(part.request.packed, PACKED, part.count, part.start * PACKED.itemsize)
        if tokens.max() >= self._vocabulary:
            raise ValueError(f"token id {tokens.max()} is not of this model, which has {self._vocabulary} tokens")
        return tokens, np.array(sources, np.int64)

    def _source(self, request: Request) -> int:
        source = self._sampled.get(request)
        if source is None:
            raise ValueError(f"{request!r} goes on from a token that the step before did not sample")
        return source


def _last_rows(step: Step, decodes: int, ends: Ints) -> Ints:
    """The last row of each slice that samples, in the step's order; `ends`: the rows behind each slice's last, decoding
    ones first.
    """
    rows = []
    decoding, other = iter(ends[:decodes]), iter(ends[decodes:])
    for part in step.slices:
        end = next(decoding) if part.is_decode else next(other)
        if part.samples:
            rows.append(end - 1)
    return np.array(rows, np.int64)


def _padded(inputs: Inputs[Any], rows: int) -> Inputs[Any]:
    """With rows added that store nothing and attend to nothing."""
    missing = rows - len(inputs.tokens)
    if not missing:
        return inputs
    return inputs._replace(
        tokens=_extended(inputs.tokens, missing, 0),
        positions=_extended(inputs.positions, missing, 0),
        slots=_extended(inputs.slots, missing, -1),
        sources=_extended(inputs.sources, missing, -1),
        context_lens=_extended(inputs.context_lens, missing, 0),
        block_tables=_extended(inputs.block_tables, missing, 0),
    )


def _extended(array: NDArray[Any], rows: int, value: int) -> NDArray[Any]:
    return np.concatenate((array, np.full((rows, *array.shape[1:]), value, array.dtype)))
