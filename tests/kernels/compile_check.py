"""Compiles Triton kernels for a Hopper GPU on a machine without one, and says what each takes of the chip.

The interpreter checks what a kernel computes, not that it compiles: types, shapes of `tl.dot`, constants and shared
memory only meet the compiler here. Triton's wheel brings the whole way to machine code (sm_90), its own ptxas included,
so that launchers are called on small CPU tensors, and every launch is compiled instead of run.

Owns that detour. A test names a function that yields (name, call) pairs, as "package.module:function"; it runs in a
process of its own, where the kernels are not interpreted. By hand, for a table:

    python -m tests.kernels.compile_check tests.kernels.attention_launches:launches [SASS folder]

Must never launch anything, and says nothing about results or speed.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

HOPPER = 90
SHARED_BYTES = 227 * 1024  # what one program may have on sm_90
REGISTERS = 64 * 1024  # of one multiprocessor

# What a disassembly shows, and what we call it.
INSTRUCTIONS = {
    "wgmma": r"\b(HGMMA|QGMMA|IGMMA)\b",  # the tensor cores at full speed, from shared memory
    "mma": r"\b(HMMA|QMMA|IMMA)\b",  # the tensor cores, from registers
    "async copy": r"\b(LDGSTS|UBLKCP|UTMALDG)\b",  # global to shared memory past the registers: pipelined loads
    "local memory": r"\b(LDL|STL)\b",  # registers that did not fit
}
LOADS = r"\b(?:LDG|LDGSTS)\.E(?:\.(?!128|64)\w+)*(?:\.(128|64))?\b"


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel as compiled for one launch."""

    case: str
    kernel: str
    variant: str  # the same for two launches if one compilation serves both
    warps: int
    registers: int  # a thread
    local_bytes: int  # a thread, on the stack: spilled registers, or arrays indexed at run time
    shared_bytes: int  # a program
    instructions: tuple[str, ...]  # which of INSTRUCTIONS occur
    load_bits: tuple[int, ...]  # the widths of loads from global memory, async ones included

    @property
    def programs_per_multiprocessor(self) -> int:
        """How many programs fit on a multiprocessor at once, by registers, shared memory (1 KiB is reserved for each
        program) and threads."""
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * 32 * self.warps)
        by_shared = 228 * 1024 // (self.shared_bytes + 1024)
        return min(by_registers, by_shared, 64 // self.warps, 32)


def compiled(cases: str, timeout_s: float = 300) -> list[Compiled]:
    """Compiles every launch of `cases` ("package.module:function", a function without arguments that yields pairs of a
    name and a call) for sm_90. Raises AssertionError with the compiler's words if one does not compile.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_check", "--json", cases],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [
        Compiled(**{**row, "instructions": tuple(row["instructions"]), "load_bits": tuple(row["load_bits"])})
        for row in json.loads(done.stdout.splitlines()[-1])
    ]


class _NoDevice:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", HOPPER, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _compile(cases: Iterable[tuple[str, Callable[[], object]]], folder: Path | None) -> list[Compiled]:
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    launched: list[Any] = []

    def instead_of_launching(kernel: Any, grid: object) -> Callable[..., None]:
        return lambda *args, **options: launched.append(kernel.warmup(*args, grid=grid, **options))

    driver.set_active(_NoDevice())
    JITFunction.__getitem__ = instead_of_launching
    found, known = [], dict[str, Compiled]()
    for case, call in cases:
        launched.clear()
        call()
        for kernel in launched:
            if kernel.hash not in known:
                known[kernel.hash] = _describe(case, kernel, folder)
            found.append(replace(known[kernel.hash], case=case))
    return found


def _describe(case: str, kernel: Any, folder: Path | None) -> Compiled:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage = _output(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin.name)
        sass = _output(knobs.nvidia.cuobjdump.path, "--dump-sass", cubin.name)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^\w.-]+", "_", f"{case}-{kernel.metadata.name}")
        for kind in ("ttgir", "ptx"):
            (folder / f"{stem}.{kind}").write_text(kernel.asm[kind])
        (folder / f"{stem}.sass").write_text(sass)
    return Compiled(
        case=case,
        kernel=kernel.metadata.name,
        variant=kernel.hash[:16],
        warps=kernel.metadata.num_warps,
        registers=int(_first(r"REG:(\d+)", usage)),
        local_bytes=int(_first(r"STACK:(\d+)", usage)) + int(_first(r"LOCAL:(\d+)", usage)),
        shared_bytes=kernel.metadata.shared,
        instructions=tuple(name for name, pattern in INSTRUCTIONS.items() if re.search(pattern, sass)),
        load_bits=tuple(sorted({int(bits or 32) for bits in re.findall(LOADS, sass)})),
    )


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, f"no {pattern} in {text[:2000]}"
    return match[1]


def main(arguments: list[str]) -> None:
    as_json = arguments[:1] == ["--json"]
    name, *folder = arguments[1:] if as_json else arguments
    module, function = name.split(":")
    rows = _compile(getattr(importlib.import_module(module), function)(), Path(folder[0]) if folder else None)
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    for row in rows:
        print(
            f"{row.case:44} {row.kernel:24} {row.warps} warps {row.registers:3} registers {row.local_bytes:4} B local "
            f"{row.shared_bytes / 1024:6.1f} KiB shared, {row.programs_per_multiprocessor} an SM, "
            f"loads {row.load_bits}, {', '.join(row.instructions)}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
