"""A runner that has been warmed up has met every variant of its kernels, and answers as if nothing had been."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.experts import tiling
from replica.model_runner import ModelRunner
from replica.warm_up import sizes, warm_up
from tests.replica.models.paged_model import load_decoder
from tests.replica.served import Way, options, requests, run, scheduler_of, serve
from tests.tiny_models import write_tiny

torch.set_num_threads(1)  # small shapes, and other tests beside this one

WAY = Way(padded=True, chunk=48)


def test_requests_are_answered_as_without_it(tmp_path: Path) -> None:
    model = load_decoder(write_tiny(tmp_path, "mixtral", tokenizer=False))
    expected, asked = requests(), requests()
    run(model, expected, WAY)

    runner = ModelRunner(model, options(WAY))
    warm_up(runner, options(WAY))
    asyncio.run(serve(runner, scheduler_of(WAY), asked, neighbour=False))

    assert [one.output for one in asked] == [one.output for one in expected]


def test_no_kernel_is_compiled_while_serving() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.replica.kernel_variants"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    started, late = done.stdout.splitlines()
    assert {"_decode", "_reduce", "_prefill", "_draw", "_pick", "_silu_mul", "_gate_up"} <= set(started.split())
    assert late == "late:", done.stdout


@pytest.mark.parametrize(("experts", "chosen"), [(8, 2), (60, 4), (64, 6), (64, 8), (128, 8), (160, 6), (512, 10)])
@pytest.mark.parametrize("most", [512, 2048, 5000, 8192])
def test_no_number_of_tokens_needs_another_product_of_experts(experts: int, chosen: int, most: int) -> None:
    def products(counts: range | list[int]) -> set[object]:
        return {tiling(count * chosen, experts, torch.bfloat16) for count in counts}

    assert products(list(sizes(most))) == products(range(1, most + 1))


def test_the_largest_step_is_among_them() -> None:
    assert list(sizes(1)) == [1]
    assert list(sizes(8)) == [1, 2, 4, 8]
    assert list(sizes(9)) == [1, 2, 4, 8, 9]
