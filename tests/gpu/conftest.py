"""Tests that need an NVIDIA GPU: without one they are skipped, unless RADIXGATE_GPU=required (`make gpu-check`)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("RADIXGATE_GPU") == "required" and (reason := _why_not()):
        raise pytest.UsageError(f"nothing was checked: {reason}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    if ours and (reason := _why_not()):
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_not() -> str:
    """Empty where the tests can run."""
    import torch

    if not torch.cuda.is_available():
        return f"these tests need an NVIDIA GPU, and torch {torch.__version__} sees no CUDA device"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 would test the interpreter instead of the GPU; unset it"
    return ""
