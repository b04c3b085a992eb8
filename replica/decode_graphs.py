"""Decode steps of fixed shapes: padded to the next of a few sizes and, on CUDA, captured once and replayed.

A graph reads and writes the same memory each time. So this file owns static inputs that every decode step is copied
to, static outputs, and the capture. What is captured goes from the inputs to the logits and the likeliest token of each
row. Sampling stays outside: its shapes follow what the requests want. All sizes share one memory for their logits; one
for each size would take gigabytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.ops import Layout, Paged
from replica.batch import Inputs

Forward = Callable[[Tensor, Tensor, Layout], Tensor]
"""Tokens [T], positions [T] and layout to the last hidden states [T, H]."""
Head = Callable[[Tensor], Tensor]
"""Hidden states [S, H] to logits [S, V], of any floating dtype."""


class Decoded(NamedTuple):
    """Of each row: its logits, fp32 [rows, V], and the likeliest token, int64 [rows]. Valid until the next step."""

    logits: Tensor
    likeliest: Tensor


def graph_sizes(most: int) -> tuple[int, ...]:
    """1, 2, 4, 8, then every 8 up to `most`, and `most` itself."""
    return tuple(sorted({size for size in (1, 2, 4, *range(8, most, 8)) if size < most} | {most}))


def with_sampled(tokens: Tensor, sources: Tensor, sampled: Tensor) -> Tensor:
    """The tokens, those that have a source taken from what the step before sampled."""
    return torch.where(sources >= 0, sampled[sources.clamp_min(0)], tokens)


class DecodeGraphs:
    """Runs steps of at most `most` decoding requests, with block tables at most `width` wide.

    `sampled` is where the step before left its tokens: always the same memory. Without `capture` every step is computed
    anew, on the same padded inputs.
    """

    def __init__(
        self,
        forward: Forward,
        head: Head,
        sampled: Tensor,
        *,
        vocabulary: int,
        most: int,
        width: int,
        longest_context: int,
        capture: bool,
    ) -> None:
        self._forward = forward
        self._head = head
        self._sampled = sampled
        self._sizes = graph_sizes(most)
        self._longest_context = longest_context
        device = sampled.device
        longs = torch.zeros((4, most), dtype=torch.int64, device=device)
        longs[2:] = -1  # stored nowhere, taken from nowhere
        self._static: Inputs[Tensor] = Inputs(
            tokens=longs[0],
            positions=longs[1],
            slots=longs[2],
            sources=longs[3],
            last_rows=longs[0, :0],
            context_lens=torch.zeros(most, dtype=torch.int32, device=device),
            query_starts=torch.arange(most + 1, dtype=torch.int32, device=device),
            block_tables=torch.zeros((most, width), dtype=torch.int32, device=device),
        )
        self._logits = torch.zeros((most, vocabulary), dtype=torch.float32, device=device)
        self._likeliest = torch.zeros(most, dtype=torch.int64, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        if capture:
            self._capture()

    def padded(self, rows: int) -> int:
        """The size of the graph that serves so many requests."""
        return self._sizes[bisect_left(self._sizes, rows)]

    def run(self, inputs: Inputs[Tensor]) -> Decoded:
        """Computes a decode step of one of the sizes."""
        rows, width = inputs.block_tables.shape
        static = self._static
        static.tokens[:rows] = inputs.tokens
        static.positions[:rows] = inputs.positions
        static.slots[:rows] = inputs.slots
        static.sources[:rows] = inputs.sources
        static.context_lens[:rows] = inputs.context_lens
        static.block_tables[:rows, :width] = inputs.block_tables
        if rows in self._graphs:
            self._graphs[rows].replay()
        else:
            self._compute(rows)
        return Decoded(self._logits[:rows], self._likeliest[:rows])

    def replay(self, rows: int) -> Callable[[], None] | None:
        """Repeats the last decode step of so many requests on the device, without any work of the host's; None where
        nothing is captured. For measurements.
        """
        graph = self._graphs.get(self.padded(rows))
        return None if graph is None else graph.replay

    def _compute(self, rows: int) -> None:
        static = self._static
        tokens = with_sampled(static.tokens[:rows], static.sources[:rows], self._sampled)
        decodes = Paged(
            static.query_starts[: rows + 1],
            static.context_lens[:rows],
            static.block_tables[:rows],
            longest_query=1,
            longest_context=self._longest_context,
        )
        hidden = self._forward(tokens, static.positions[:rows], Layout(static.slots[:rows], decodes, None))
        # Widened on the way to where they stay: a copy in fp32 in between would be written and read for nothing.
        scores = self._head(hidden)
        self._logits[:rows] = scores
        self._likeliest[:rows] = scores.argmax(dim=-1)

    def _capture(self) -> None:
        """The largest first, so that the others fit into its memory: they share one pool, as they never run at once."""
        pool = torch.cuda.graph_pool_handle()
        for rows in reversed(self._sizes):
            self._compute(rows)  # compiles kernels and fills caches, which cannot be done during a capture
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._compute(rows)
            self._graphs[rows] = graph
