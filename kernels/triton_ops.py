"""The operations as Triton kernels, for CUDA devices: the module that satisfies `ops.Ops` there.

Owns nothing but the list; each kernel's launcher lives beside its kernel. Importing this imports triton.
"""

from __future__ import annotations

from kernels.experts import experts
from kernels.fused import add_rms_norm, rms_norm, rope, silu_mul
from kernels.kv_store import store_kv
from kernels.nucleus import nucleus
from kernels.paged_decode import paged_decode
from kernels.paged_prefill import paged_prefill
from kernels.sampling import sample

__all__ = [
    "add_rms_norm",
    "experts",
    "nucleus",
    "paged_decode",
    "paged_prefill",
    "rms_norm",
    "rope",
    "sample",
    "silu_mul",
    "store_kv",
]
