"""A whole model on the Triton kernels says what it says in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.replica.models.paged_model import PagedModel, load_decoder
from tests.tiny_models import write_tiny

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS: list[list[list[int]]] = [
    [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [300, 301, 302]],
    [[18], [303, 304]],  # a decode beside a chunk
]


def test_triton_kernels_compute_what_plain_torch_does(tmp_path: Path) -> None:
    """Norms of queries and keys, a layer with experts and one without, a window shorter than the prompt."""
    from kernels import triton_ops  # only here: where there is no Triton, the rest of this folder still runs

    window: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 10}
    directory = write_tiny(tmp_path, "qwen3_moe", tokenizer=False, mlp_only_layers=[0], **window)
    plain = PagedModel(load_decoder(directory, device=DEVICE), 2, 16)
    triton = PagedModel(load_decoder(directory, triton_ops, device=DEVICE), 2, 16)
    for tokens in STEPS:
        for wanted, got in zip(plain.step(tokens), triton.step(tokens), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0.0, atol=1e-3)
