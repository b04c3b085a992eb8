"""How many KV blocks there is memory for.

Owns the arithmetic, and the measurement of what a step needs besides weights and KV. Must never let a replica start
that could not serve one sequence of its longest length.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from replica.blocks import Block, BlockTable, Namespace
from replica.model_runner import ModelRunner, RunnerOptions
from replica.models.config import ModelConfig, ModelError
from replica.models.decoder import Decoder
from replica.request import Limits, Request
from replica.sampling_params import SamplingParams
from replica.scheduler import Slice, Step

GIB = 1 << 30

# Of a host's memory, which the weights and everything else share.
_HOST_SHARE = 4
_HOST_MOST = 4 * GIB

# What takes most memory for a sample: it is penalised, searched for its nucleus, and its log probabilities are wanted.
_HEAVY = SamplingParams(temperature=0.7, top_p=0.9, min_p=0.05, repetition_penalty=1.1, logprobs=20)


def kv_block_bytes(config: ModelConfig, *, block_size: int, kv_dtype: torch.dtype) -> int:
    """Bytes of one block, all layers together."""
    return config.kv_bytes_per_token(kv_dtype.itemsize) * block_size


def kv_blocks(config: ModelConfig, budget: int, *, block_size: int, kv_dtype: torch.dtype, max_model_len: int) -> int:
    """As many blocks as fit into `budget` bytes. Raises ModelError when a sequence of `max_model_len` does not."""
    blocks = max(0, budget) // kv_block_bytes(config, block_size=block_size, kv_dtype=kv_dtype)
    check_room(blocks, block_size=block_size, max_model_len=max_model_len)
    return blocks


def check_room(blocks: int, *, block_size: int, max_model_len: int) -> None:
    """Raises ModelError when one sequence of `max_model_len` tokens does not fit into so many blocks."""
    if blocks < -(-max_model_len // block_size):
        raise ModelError(
            f"there is room for {blocks * block_size} tokens of KV, but one sequence may have {max_model_len}: lower "
            "--max-model-len, or make room with --gpu-memory-utilization (on a GPU) or --kv-tokens (on a CPU)"
        )


def host_budget() -> int:
    """Bytes for KV in the host's memory where nobody says how many: a quarter of what is available, at most 4 GiB."""
    return min(_available() // _HOST_SHARE, _HOST_MOST)


def device_budget(model: Decoder, options: RunnerOptions, share: float) -> int:
    """Bytes for KV on the model's GPU, so that all in all `share` of its memory is used. Not above 0 when weights and a
    step leave none. Runs the heaviest step that `options` allow; their `blocks` do not matter.

    What is left, 1 - `share`, also has to hold the decode graphs themselves: a few MB each.
    """
    device = next(model.parameters()).device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    run_heaviest_step(model, options)
    ours, peak = torch.cuda.memory_reserved(device), torch.cuda.max_memory_reserved(device)
    free, total = torch.cuda.mem_get_info(device)
    torch.cuda.empty_cache()
    others = total - free - ours  # other processes, and what CUDA keeps for itself
    return int(total * share) - others - peak - graphs_bytes(model.config, options)


def graphs_bytes(config: ModelConfig, options: RunnerOptions) -> int:
    """Bytes that decode graphs keep for the logits of the largest: in fp32, and before that in the model's dtype, which
    has 4 bytes at most.
    """
    return 8 * options.max_running * config.vocab_size if options.graphs else 0


def run_heaviest_step(model: Decoder, options: RunnerOptions) -> None:
    """All its KV goes into one block, so that it can be run before there is room for more."""
    runner = ModelRunner(model, replace(options, blocks=1, overlap=False, graphs=False, padded=False))
    try:
        runner.compute(heaviest_step(options))
    finally:
        runner.close()


def heaviest_step(options: RunnerOptions) -> Step:
    """A step as large as there can be: of as many requests as may run, which all sample and need everything there.

    The tokens are spread evenly, but for the first request, which gets what is left over.
    """
    requests = min(options.max_running, options.max_batched_tokens)
    count = min(options.max_batched_tokens // requests, options.max_model_len)
    first = min(options.max_batched_tokens - (requests - 1) * count, options.max_model_len)
    counts = [first] + [count] * (requests - 1)
    return Step(tuple(Slice(_request(count, options.block_size), 0, count, samples=True) for count in counts))


def _request(tokens: int, block_size: int) -> Request:
    namespace = Namespace("")
    request = Request([0] * tokens, Limits(1), namespace, sampling=_HEAVY)
    request.table = BlockTable(namespace, [Block(0)] * -(-tokens // block_size))
    return request


def _available() -> int:
    """Bytes that this process may still take: of the machine's, and within its control group's limit."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        return min(available, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such group, or one without a limit ("max")
        return available
