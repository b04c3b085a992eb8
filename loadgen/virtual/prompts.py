"""The requests of a simulation, as a router and as a replica's block pool see them.

Owns how a trace's hash ids become pool content and block keys. Must never make two different ids alike, nor hold the
tokens of a whole trace.

Ids are numbered in order of first appearance, so that any ids will do. There are two forms of content:

- *ids*: a trace block is one unit of 4 bytes, its number. Cheap, and a partial last block can be found again as a
  whole, as published simulations of such traces count it.
- *tokens*: each token of a block is the block's number. Blocks of the pool may then be of any size, only full ones are
  shared, and a replica's own output (token 0) fills the last.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import msgspec

from loadgen.traces import BLOCK_TOKENS, TraceRequest
from radix.blocks import TOKEN_BYTES, hash_chunks, pack_tokens
from replica.blocks import Namespace

NAMESPACE = Namespace("trace")
OUTPUT_TOKEN = 0
_FIRST_NUMBER = 1


class Ask(msgspec.Struct, frozen=True, gc=False):
    """One request. `blocks` are the numbers of its trace blocks, of `unit_tokens` each; `keys` what the router knows of
    the prompt.
    """

    index: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    keys: list[int]
    unit_tokens: int = BLOCK_TOKENS


def asks(
    requests: Iterable[TraceRequest], block_tokens: int | None, rate_scale: float = 1.0, token_scale: int = 1
) -> list[Ask]:
    """`block_tokens` is the size of a replica's blocks; None for content as ids.

    Times are divided by `rate_scale`; tokens by `token_scale`, as loadgen/plans/trace.py does it: those of every trace
    block, a partial last one's rounded up, and of the output. Raises ValueError when it does not divide a trace block.
    """
    unit, rest = divmod(BLOCK_TOKENS, token_scale)
    if rest:
        raise ValueError(f"a token scale of {token_scale} does not divide a block of {BLOCK_TOKENS} tokens")
    numbers: dict[int, int] = {}
    listed = []
    for index, request in enumerate(requests):
        blocks = tuple([numbers.setdefault(block, len(numbers) + _FIRST_NUMBER) for block in request.blocks])
        prompt = (len(blocks) - 1) * unit
        prompt += -(-(request.prompt_tokens - (len(blocks) - 1) * BLOCK_TOKENS) // token_scale)
        if block_tokens is None:
            keys = hash_chunks(pack_tokens(blocks), TOKEN_BYTES, NAMESPACE.key)
        else:
            packed = pack_tokens(prompt_tokens(blocks, prompt, unit))
            keys = hash_chunks(packed, block_tokens * TOKEN_BYTES, NAMESPACE.key)
        output = max(1, -(-request.output_tokens // token_scale))
        listed.append(Ask(index, request.at_s / rate_scale, prompt, output, blocks, keys, unit))
    return listed


def prompt_tokens(blocks: Sequence[int], count: int, unit_tokens: int = BLOCK_TOKENS) -> array[int]:
    """The `count` tokens of a prompt of these blocks, of `unit_tokens` each."""
    tokens = array("I")  # packing it costs a fraction of packing a list
    for number in blocks:
        tokens.extend(array("I", (number,)) * unit_tokens)
    del tokens[count:]
    return tokens


def packed_ids(ask: Ask) -> bytes:
    """Content as ids, and one unit more: a pool always leaves the last to be computed."""
    return pack_tokens((*ask.blocks, OUTPUT_TOKEN))


class Job:
    """An ask on its way: where it is, and what has become of it. Times are the clock's, in seconds.

    `cached_tokens` of its prompt were found by the replica that gave the first token; `produced` are the output tokens
    of replicas that died before its end.
    """

    __slots__ = (
        "ask",
        "attempts",
        "cached_tokens",
        "error",
        "finished_s",
        "first_token_s",
        "produced",
        "replica",
    )

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.attempts = 0
        self.cached_tokens = 0
        self.error = ""
        self.finished_s: float | None = None
        self.first_token_s: float | None = None
        self.produced = 0
        self.replica = ""

    @property
    def found_blocks(self) -> int:
        """Trace blocks that were found. A partial one is, or is not, as a whole."""
        whole = self.cached_tokens == self.ask.prompt_tokens
        return len(self.ask.blocks) if whole else self.cached_tokens // self.ask.unit_tokens
