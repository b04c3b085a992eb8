"""A decoder run by hand over paged KV: a few sequences whose blocks lie scattered, any tokens of each a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kernels import reference
from kernels.ops import KvCache, Layout, Ops, Paged
from replica.models.config import ModelConfig
from replica.models.decoder import Decoder
from replica.weights import load

CPU = torch.device("cpu")


def load_decoder(
    directory: Path, ops: Ops = reference, *, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> Decoder:
    model = Decoder(ModelConfig.read(directory), ops, device=device, dtype=dtype)
    load(model, directory)
    return model


class PagedModel:
    """`count` sequences of up to `room` tokens each."""

    def __init__(self, model: Decoder, count: int, room: int, block_size: int = 16) -> None:
        config, width = model.config, -(-room // block_size)
        self.model = model
        self.block_size = block_size
        self.device = model.embedding.device
        scattered = torch.randperm(count * width, generator=torch.Generator().manual_seed(0))
        self.tables = scattered.view(count, width).int().to(self.device)
        self.lengths = [0] * count
        shape = (count * width, config.kv_heads, block_size, config.head_dim)
        blank = torch.full(shape, torch.nan, dtype=model.embedding.dtype, device=self.device)
        self.caches = [KvCache(blank.clone(), blank.clone()) for _ in range(model.kv_layers)]

    @torch.inference_mode()
    def step(self, tokens: Sequence[Sequence[int]]) -> list[Tensor]:
        """The next tokens of each sequence, or none of some. Returns each one's logits, [tokens, V]."""
        decodes = [row for row, some in enumerate(tokens) if len(some) == 1]
        prefills = [row for row, some in enumerate(tokens) if len(some) > 1]
        order = decodes + prefills
        positions = [
            torch.arange(self.lengths[row], self.lengths[row] + len(tokens[row]), device=self.device) for row in order
        ]
        slots = [
            self.tables[row, own // self.block_size].long() * self.block_size + own % self.block_size
            for row, own in zip(order, positions, strict=True)
        ]
        for row in order:
            self.lengths[row] += len(tokens[row])
        layout = Layout(torch.cat(slots), self._paged(decodes, tokens), self._paged(prefills, tokens))
        flat = torch.tensor([token for row in order for token in tokens[row]], device=self.device)
        hidden = self.model.forward(flat, torch.cat(positions), layout, self.caches)
        logits = iter(self.model.logits(hidden))
        by_row = {row: torch.stack([next(logits) for _ in tokens[row]]) for row in order}
        nothing = torch.empty(0, self.model.config.vocab_size)
        return [by_row.get(row, nothing) for row in range(len(tokens))]

    def _paged(self, rows: list[int], tokens: Sequence[Sequence[int]]) -> Paged | None:
        if not rows:
            return None
        counts = torch.tensor([0] + [len(tokens[row]) for row in rows])
        lengths = [self.lengths[row] for row in rows]
        return Paged(
            query_starts=counts.cumsum(0).int().to(self.device),
            context_lens=torch.tensor(lengths, dtype=torch.int32, device=self.device),
            block_tables=self.tables[rows],
            longest_query=int(counts.max()),
            longest_context=max(lengths),
        )
