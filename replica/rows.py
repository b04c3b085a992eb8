"""What the runner keeps of each request between two steps, on the host: its block table and sampling parameters.

Owns one row of numbers for each request of the last step, so that most of a step's arrays are one indexing each. Must
never decide anything from a request's past: a row that was forgotten is made again, equal to what it would have been.
"""

from __future__ import annotations

from math import log

import numpy as np
from numpy.typing import NDArray

from replica.blocks import BlockTable
from replica.request import Request
from replica.sampling_params import SamplingParams

# The columns of `Rows.floats`.
TEMPERATURE, TOP_P, LOG_MIN_P, REPETITION, FREQUENCY, PRESENCE = range(6)

# Widths are multiples of this, so that kernels meet few different strides.
_WIDTH = 16


def padded_width(blocks: int) -> int:
    return -(-blocks // _WIDTH) * _WIDTH


class Row:
    """Where a request stands in the arrays, and which part of its block table is written there: `written` blocks of
    `table`, of which `stored` were resident then.
    """

    __slots__ = ("index", "plain", "seen", "stored", "table", "written")

    def __init__(self, index: int, params: SamplingParams) -> None:
        self.index = index
        self.plain = params.greedy and not params.penalised and params.logprobs is None
        self.seen = 0
        self.table: BlockTable | None = None
        self.written = 0
        self.stored = 0


class Rows:
    """Room for `most` requests a step, of `blocks` blocks each at most."""

    def __init__(self, most: int, blocks: int) -> None:
        rows = 2 * most  # those of the last step and those of this one
        self.blocks = blocks
        self.tables: NDArray[np.int32] = np.zeros((rows, padded_width(blocks)), np.int32)
        self.floats: NDArray[np.float32] = np.zeros((rows, 6), np.float32)
        self.seeds: NDArray[np.int64] = np.zeros(rows, np.int64)
        self.top_k: NDArray[np.int64] = np.zeros(rows, np.int64)
        self.likeliest: NDArray[np.int64] = np.zeros(rows, np.int64)
        self._rows: dict[Request, Row] = {}
        self._free = list(range(rows))
        self._step = 0

    def begin_step(self) -> None:
        """Forgets every request that `of` was not asked for since the last call."""
        gone = [request for request, row in self._rows.items() if row.seen != self._step]
        self._free += [self._rows.pop(request).index for request in gone]
        self._step += 1

    def of(self, request: Request) -> Row:
        """The request's row, brought up to date."""
        row = self._rows.get(request)
        if row is None:
            row = self._rows[request] = self._new(request.sampling)
        row.seen = self._step
        table = request.table
        if table is not row.table or len(table.blocks) != row.written or table.stored != row.stored:
            self._write(row, table)
        return row

    def __getitem__(self, request: Request) -> Row:
        """The row as the last `of` left it."""
        return self._rows[request]

    def _new(self, params: SamplingParams) -> Row:
        row = Row(self._free.pop(), params)
        self.floats[row.index] = (
            params.temperature,
            params.top_p,
            log(params.min_p) if params.min_p > 0 else -np.inf,
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
        self.seeds[row.index] = (params.seed + 2**63) % 2**64 - 2**63  # the low 64 bits, as a signed number
        self.top_k[row.index] = max(0, params.top_k)
        self.likeliest[row.index] = -1 if params.logprobs is None else params.logprobs
        return row

    def _write(self, row: Row, table: BlockTable) -> None:
        """Writes what may have changed: what came behind, and blocks that became shared while they were stored."""
        if len(table.blocks) > self.blocks:
            raise ValueError(
                f"a request holds {len(table.blocks)} blocks, but the longest one may hold {self.blocks}; it is longer "
                "than --max-model-len"
            )
        begin = min(row.stored, row.written) if table is row.table else 0
        self.tables[row.index, begin : len(table.blocks)] = [block.index for block in table.blocks[begin:]]
        row.table, row.written, row.stored = table, len(table.blocks), table.stored
