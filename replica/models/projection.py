"""A matrix product with weights that are yet to be loaded.

Owns how parameters come to be: uninitialised, on their device, and never with gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn


def parameter(*shape: int, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device=device, dtype=dtype), requires_grad=False)


class Projection(nn.Module):
    """x [T, inputs] -> x @ weight.T + bias, [T, outputs]. weight: [outputs, inputs]."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(outputs, inputs, device=device, dtype=dtype)
        self.bias = parameter(outputs, device=device, dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
