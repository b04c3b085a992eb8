"""What holds for every test, before anything is imported: without an NVIDIA GPU, Triton's kernels run in its
interpreter; models small enough for tests are computed fastest by one thread.
"""

from __future__ import annotations

import os
from pathlib import Path

# Read when a kernel is defined, so it must be set before the first of them is imported.
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# The default, said aloud: unset, Triton warns of it once, which would fail whichever test comes first.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
