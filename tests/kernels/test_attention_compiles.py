"""The attention kernels compile for a Hopper GPU, and into what their configurations count on."""

from __future__ import annotations

import torch

from kernels.tuning import decode_config
from tests.kernels.compile_check import SHARED_BYTES, compiled


def test_a_model_s_steps_share_one_compilation_of_each_kernel_that_uses_the_chip() -> None:
    launched = compiled("tests.kernels.attention_launches:of_one_model")
    variants = {kernel.variant: kernel for kernel in launched}
    assert len(launched) == 9
    assert sorted(kernel.kernel for kernel in variants.values()) == ["_decode", "_prefill", "_reduce"]
    decode, prefill = (next(x for x in launched if x.kernel == name) for name in ("_decode", "_prefill"))
    for kernel in (decode, prefill):
        assert kernel.shared_bytes <= SHARED_BYTES
        assert 128 in kernel.load_bits
        assert "async copy" in kernel.instructions
    config = decode_config(128, 4, torch.bfloat16, torch.bfloat16)
    assert decode.programs_per_multiprocessor >= config.programs
    assert decode.local_bytes == 0
    assert "wgmma" in prefill.instructions
