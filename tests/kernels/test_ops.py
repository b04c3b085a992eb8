"""Both modules offer every operation; mypy holds their signatures to the interface. The kernels compile for a GPU."""

from __future__ import annotations

from inspect import getmembers, isfunction, signature

import pytest

from kernels import ops, reference, triton_ops
from tests.kernels.compile_check import compiled

IMPLEMENTATIONS: tuple[ops.Ops, ...] = (reference, triton_ops)


@pytest.mark.parametrize("module", [reference, triton_ops])
def test_a_module_has_every_operation_with_its_arguments(module: object) -> None:
    for name, operation in getmembers(ops.Ops, isfunction):
        if not name.startswith("_"):
            assert ["self", *signature(getattr(module, name)).parameters] == list(signature(operation).parameters)


def test_the_intricate_kernels_compile_for_hopper() -> None:
    launched = {kernel.kernel: kernel for kernel in compiled("tests.kernels.fused_launches:the_intricate")}
    sampling = {"_draw", "_pick", "_extend", "_weigh", "_gather", "_settle"}
    experts = {"_route", "_gate_up", "_down", "_sum"}
    assert set(launched) == {"_store"} | sampling | experts
    assert not any(kernel.local_bytes for kernel in launched.values()), "registers that did not fit"
    for name in ("_gate_up", "_down"):
        assert {"wgmma", "async copy"} <= set(launched[name].instructions)
    for name in ("_store", "_draw", "_extend", "_gather", "_gate_up", "_down"):
        assert 128 in launched[name].load_bits
