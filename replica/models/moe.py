"""The MLP of a layer with experts: a router picks some for each token, and their outputs are summed by its weights.

Owns the choice; `ops.experts` computes it. Must never read the choice back from the device, so that a step with experts
can be captured in a graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.ops import Ops
from replica.models.config import ExpertsConfig
from replica.models.projection import Projection, parameter


class SparseMlp(nn.Module):
    """`gate_up`: [experts, 2 * intermediate, hidden], gates first; `down`: [experts, hidden, intermediate]."""

    def __init__(
        self, hidden_size: int, config: ExpertsConfig, ops: Ops, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.ops = ops
        self.config = config
        inner = config.intermediate_size
        self.router = Projection(hidden_size, config.count, bias=False, device=device, dtype=dtype)
        self.gate_up = parameter(config.count, 2 * inner, hidden_size, device=device, dtype=dtype)
        self.down = parameter(config.count, hidden_size, inner, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, hidden], result the same."""
        probabilities = self.router.forward(x).softmax(dim=-1, dtype=torch.float32)
        weights, chosen = probabilities.topk(self.config.chosen, dim=-1)
        if self.config.renormalise:
            weights /= weights.sum(dim=-1, keepdim=True)
        return self.ops.experts(x, self.gate_up, self.down, chosen, weights)
