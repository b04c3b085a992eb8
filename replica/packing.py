"""Many small arrays, brought to the device by one copy.

Owns how arrays lie side by side in one run of bytes. Must never wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Every array begins at a multiple of this, so that kernels see the same alignment whatever the step's sizes are.
_ALIGNMENT = 16

_TORCH = {np.dtype(np.int64): torch.int64, np.dtype(np.int32): torch.int32, np.dtype(np.float32): torch.float32}

Array = TypeVar("Array", NDArray[Any], Tensor)
"""Arrays on the host, or the same as tensors on the device."""


def to_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Arrays of int64, int32 or float32 as tensors on the device, in order: there once the current stream gets there.

    A GPU reads them by itself, from page-locked memory. That comes from torch's own pool, which hands it out again only
    after the copies that read it are done; so nobody here counts buffers.
    """
    begins, end = [], 0
    for array in arrays:
        begins.append(end)
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    host = torch.empty(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
    raw = host.numpy()
    for array, begin in zip(arrays, begins, strict=True):
        raw[begin : begin + array.nbytes].view(array.dtype)[:] = array.ravel()
    moved = host.to(device, non_blocking=True)
    typed = {dtype: moved.view(dtype) for dtype in _TORCH.values()}
    tensors = []
    for array, begin in zip(arrays, begins, strict=True):
        first = begin // array.itemsize
        flat = typed[_TORCH[array.dtype]][first : first + array.size]
        tensors.append(flat if array.ndim == 1 else flat.view(array.shape))
    return tensors
