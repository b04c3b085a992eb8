"""Which variants of its kernels a runner meets, first while it starts and then while it serves, told without a GPU.

Owns the detour: launchers are called on CPU tensors, and instead of a launch, Triton is asked for the key under which
it would look for the compiled kernel. A key that is new while serving is a request that waits for a compiler. It runs
in a process of its own, where kernels are not interpreted. Must never compile or launch anything; what comes out of a
step is zeros.

    python -m tests.replica.kernel_variants
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction, compute_cache_key

from kernels import triton_ops
from replica.blocks import BlockPool
from replica.model_runner import ModelRunner, RunnerOptions
from replica.models.config import ModelConfig
from replica.models.decoder import Decoder
from replica.request import Limits, Request
from replica.scheduler import Scheduler, SchedulerLimits
from replica.warm_up import warm_up
from replica.weights import fill_dummy
from tests.kernels.compile_check import _NoDevice
from tests.replica.served import MIXED, NAMESPACE, VOCABULARY, words

OPTIONS = RunnerOptions(
    max_running=13,
    max_batched_tokens=1500,
    max_model_len=512,
    block_size=16,
    blocks=600,
    kv_dtype=torch.bfloat16,
    overlap=False,
)
LENGTHS = (1, 2, 5, 33, 100, 257, 300)
# A layer with experts and one without; the kernels' variants for other numbers of tokens are those of the experts.
MODEL = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "mlp_only_layers": [1],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
}


def main() -> None:
    """Prints the kernels that start, and then those of which a new variant comes while serving."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(MODEL))
        config = ModelConfig.read(Path(directory))
    model = Decoder(config, triton_ops, device=torch.device("cpu"), dtype=torch.bfloat16)
    fill_dummy(model)
    met: dict[tuple[str, str], None] = {}
    _ask_instead_of_launching(met)
    runner = ModelRunner(model, OPTIONS)
    warm_up(runner, OPTIONS)
    started = len(met)
    serve(runner)
    runner.close()
    names = [name for name, _ in met]
    print("started:", *sorted(set(names[:started])))
    print("late:", *sorted(set(names[started:])))


def serve(runner: ModelRunner) -> None:
    """Requests of all kinds that come a few at a time."""
    random = Random(1)
    scheduler = Scheduler(BlockPool(OPTIONS.blocks, OPTIONS.block_size), SchedulerLimits(1500, OPTIONS.max_running))
    coming = [words(random.choice(LENGTHS), seed) for seed in range(40)]
    while coming or not scheduler.idle:
        for prompt in [coming.pop() for _ in range(min(len(coming), random.randrange(4)))]:
            limits = Limits(random.choice((1, 3, 10)), ignore_eos=True)
            scheduler.add(Request(prompt, limits, NAMESPACE, sampling=random.choice(MIXED)))
        step = scheduler.schedule()
        if step.slices:
            done = runner.compute(step)
            scheduler.postprocess(step, done.tokens, done.logprobs)


def _ask_instead_of_launching(met: dict[tuple[str, str], None]) -> None:
    def ask(kernel: Any, _grid: object) -> Callable[..., None]:
        def asked(*args: object, **options: object) -> None:
            # What `JITFunction.run` adds to the options of a launch.
            more = {"debug": False, "instrumentation_mode": "", "fpsan_homomorphic_casts": False}
            _, keys, _, _, bind = kernel.device_caches[0]
            _, specialization, bound = bind(*args, **options, **more)
            met[kernel.fn.__name__, compute_cache_key(keys, specialization, bound)] = None

        return asked

    uninitialised = torch.empty

    def zeros(*shape: Any, **options: Any) -> torch.Tensor:
        return uninitialised(*shape, **options).zero_()

    driver.set_active(_NoDevice())
    JITFunction.__getitem__ = ask
    torch.empty = zeros  # nobody writes what launches would have


if __name__ == "__main__":
    main()
