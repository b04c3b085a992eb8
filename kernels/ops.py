"""What a model asks of its device: the one interface between models and kernels.

Owns the names, shapes and meanings. `reference.py` (plain torch, any device) and `triton_ops.py` (Triton, CUDA) are two
modules of this interface; a model is handed one of them and never asks which. Must never hold code that computes.

Letters in shapes: T tokens of a step, all sequences one after the other; S sequences; Hq query heads, Hk KV heads
(Hq is a multiple of Hk); D head dimension; E experts; V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class KvCache:
    """The paged keys and values of one layer.

    `key` and `value`: [blocks, Hk, block_size, D], of the model's dtype or float8_e4m3fn. An FP8 cache stores
    x / scale, saturated at the format's limits; other caches store x, and their scales are 1.
    """

    key: Tensor
    value: Tensor
    key_scale: float = 1.0
    value_scale: float = 1.0

    @property
    def block_size(self) -> int:
        return self.key.shape[2]


@dataclass(frozen=True, slots=True)
class Paged:
    """Sequences of one attention call, and where their KV lies.

    `query_starts`: int32 [S + 1], where each sequence's query tokens begin among the call's; rising.
    `context_lens`: int32 [S], tokens of each sequence whose KV is in the cache, those of the query included (the KV of
    a step is stored before its attention). The query tokens are the last of them. 0: a row of padding, whose output
    is 0.
    `block_tables`: int32 [S, width], the physical blocks of each sequence, in order. What lies behind the blocks of a
    context is undefined and must not be used as an index.
    `longest_query`, `longest_context`: at least the longest of each; they bound grids and loops.
    """

    query_starts: Tensor
    context_lens: Tensor
    block_tables: Tensor
    longest_query: int
    longest_context: int


@dataclass(frozen=True, slots=True)
class Attending:
    """How a layer attends, always causally: scores are q.k * scale, then softcap * tanh(score / softcap) if there is
    one; a token at position p sees the positions from p - window + 1 to p, or all up to p without a window.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tokens of a step go: first `decodes`, one token each, then `prefills`. Either may be absent.

    `slots`: int64 [T], for each token its place in the cache, block * block_size + offset; -1: stored nowhere.
    """

    slots: Tensor
    decodes: Paged | None
    prefills: Paged | None

    @property
    def decode_tokens(self) -> int:
        return 0 if self.decodes is None else self.decodes.context_lens.shape[0]


class Ops(Protocol):
    """The operations. Sums and softmax are computed in fp32; results have the dtype of `x` or `query`."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight over the last dimension. x: [T, H] or [T, heads, D], rows may be strided."""
        ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """residual += x, in place; returns rms_norm(residual). Both [T, H]."""
        ...

    def rope(self, query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        """Rotates query [T, Hq, D] and key [T, Hk, D] in place (rows may be strided), halves paired as in Hugging Face
        (x[i] with x[i + R/2]). positions: int64 [T]; cos_sin: fp32 [longest, R], cosines then sines, R <= D.
        """
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up. gate_up: [T, 2 I], gates first; result [T, I]."""
        ...

    def store_kv(self, key: Tensor, value: Tensor, cache: KvCache, slots: Tensor) -> None:
        """Writes key and value [T, Hk, D] (rows may be strided) to their slots; slot -1 writes nothing."""
        ...

    def paged_decode(self, query: Tensor, cache: KvCache, paged: Paged, attending: Attending) -> Tensor:
        """Attention of one query token a sequence: query [S, Hq, D] (rows may be strided), result [S, Hq, D]."""
        ...

    def paged_prefill(self, query: Tensor, cache: KvCache, paged: Paged, attending: Attending) -> Tensor:
        """Attention of any number of query tokens a sequence: query [T, Hq, D], result [T, Hq, D]."""
        ...

    def experts(self, x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Sum over each token's chosen experts e of weight * (silu_mul(x @ gate_up[e].T) @ down[e].T).

        x: [T, H]; gate_up: [E, 2 I, H]; down: [E, H, I]; chosen: int64 [T, k], all different in a row; weights: fp32
        [T, k]. Result [T, H].
        """
        ...

    def nucleus(self, logits: Tensor, mass: Tensor) -> Tensor:
        """Where each row's nucleus ends (top_p), fp32 [S]: the largest of its logits such that those not less than it
        have at least `mass` of softmax(logits); the highest logit if `mass` is 0 or less, -inf if it is 1 or more. It
        depends on the row alone, never on the batch.

        logits: fp32 [S, V], rows may be strided, without NaN; mass: fp32 [S].
        """
        ...

    def sample(self, logits: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
        """One token a row, drawn from softmax(logits): the argmax of logits + Gumbel noise, int64 [S].

        The noise is a function of (seed, position, token id) alone, by Philox 4x32-10, so a draw never depends on the
        batch. logits: fp32 [S, V], -inf for what must not be drawn; seeds, positions: int64 [S].
        """
        ...
