"""What holds for every test: without an NVIDIA GPU, Triton's kernels run in its interpreter."""

from __future__ import annotations

import os
from pathlib import Path

# Read when a kernel is defined, so it must be set before the first of them is imported.
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
