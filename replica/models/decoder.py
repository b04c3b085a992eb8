"""The transformer itself: one decoder for all families, by the flags of its configuration.

Owns the order of operations; what computes them is handed in as `ops`. Must never wait for the device nor read from it,
so that a step can be captured in a graph, and never ask which family it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from kernels.ops import Attending, KvCache, Layout, Ops
from replica.models.config import ModelConfig
from replica.models.moe import SparseMlp
from replica.models.projection import Projection, parameter
from replica.models.rotary import cos_sin


class Attention(nn.Module):
    """The rows of `qkv` are query heads, then key heads, then value heads."""

    def __init__(self, config: ModelConfig, layer: int, ops: Ops, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.attending = Attending(config.head_dim**-0.5, config.windows[layer], config.softcap)
        inner = config.heads * config.head_dim
        self.qkv = Projection(
            config.hidden_size,
            inner + 2 * config.kv_heads * config.head_dim,
            bias=config.qkv_bias,
            device=device,
            dtype=dtype,
        )
        self.output = Projection(inner, config.hidden_size, bias=config.output_bias, device=device, dtype=dtype)
        self.query_norm = parameter(config.head_dim, device=device, dtype=dtype) if config.qk_norm else None
        self.key_norm = parameter(config.head_dim, device=device, dtype=dtype) if config.qk_norm else None

    def forward(self, x: Tensor, positions: Tensor, layout: Layout, cache: KvCache, cos_sin: Tensor) -> Tensor:
        """x: [T, hidden], result the same."""
        config = self.config
        heads = self.qkv.forward(x).view(x.shape[0], -1, config.head_dim)
        values = config.heads + config.kv_heads
        query, key, value = heads[:, : config.heads], heads[:, config.heads : values], heads[:, values:]
        if self.query_norm is not None and self.key_norm is not None:
            query = self.ops.rms_norm(query, self.query_norm, config.norm_eps)
            key = self.ops.rms_norm(key, self.key_norm, config.norm_eps)
        self.ops.rope(query, key, positions, cos_sin)
        self.ops.store_kv(key, value, cache, layout.slots)
        return self.output.forward(self._attend(query, layout, cache).flatten(1))

    def _attend(self, query: Tensor, layout: Layout, cache: KvCache) -> Tensor:
        """query: [T, heads, head_dim], result the same: the decodes among them, then the prefills."""
        if layout.prefills is None:
            assert layout.decodes is not None, "a step without tokens"
            return self.ops.paged_decode(query, cache, layout.decodes, self.attending)
        if layout.decodes is None:
            return self.ops.paged_prefill(query, cache, layout.prefills, self.attending)
        first = layout.decode_tokens
        return torch.cat(
            (
                self.ops.paged_decode(query[:first], cache, layout.decodes, self.attending),
                self.ops.paged_prefill(query[first:], cache, layout.prefills, self.attending),
            )
        )


class Mlp(nn.Module):
    """The rows of `gate_up` are gates, then what they gate."""

    def __init__(self, config: ModelConfig, ops: Ops, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.ops = ops
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up = Projection(hidden, 2 * inner, bias=bias, device=device, dtype=dtype)
        self.down = Projection(inner, hidden, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, hidden], result the same."""
        return self.down.forward(self.ops.silu_mul(self.gate_up.forward(x)))


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, ops: Ops, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_norm = parameter(config.hidden_size, device=device, dtype=dtype)
        self.attention = Attention(config, layer, ops, device=device, dtype=dtype)
        self.mlp_norm = parameter(config.hidden_size, device=device, dtype=dtype)
        self.mlp: Mlp | SparseMlp
        if config.experts is None or layer in config.experts.dense_layers:
            self.mlp = Mlp(config, ops, device=device, dtype=dtype)
        else:
            self.mlp = SparseMlp(config.hidden_size, config.experts, ops, device=device, dtype=dtype)


class Decoder(nn.Module):
    """Weights are uninitialised until `replica.weights` fills them.

    `longest`: positions that the rotary table covers, all that the model can take unless told. The caller must never
    ask for others. `kv_scales`: for each layer what an FP8 cache's keys and values are divided by; 1 unless the
    checkpoint says so.
    """

    def __init__(
        self, config: ModelConfig, ops: Ops, *, device: torch.device, dtype: torch.dtype, longest: int | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.embedding = parameter(config.vocab_size, config.hidden_size, device=device, dtype=dtype)
        layers = [DecoderLayer(config, layer, ops, device=device, dtype=dtype) for layer in range(config.layers)]
        self.layers = cast("list[DecoderLayer]", nn.ModuleList(layers))  # acts as one, and says what it holds
        self.norm = parameter(config.hidden_size, device=device, dtype=dtype)
        self.head = (
            self.embedding
            if config.tied_embeddings
            else parameter(config.vocab_size, config.hidden_size, device=device, dtype=dtype)
        )
        self.cos_sin = cos_sin(config.rope, config.head_dim, longest or config.max_position_embeddings, device)
        self.kv_scales: list[tuple[float, float]] = [(1.0, 1.0)] * config.layers

    @property
    def kv_layers(self) -> int:
        """How many layers have a KV cache."""
        return self.config.layers

    def forward(self, tokens: Tensor, positions: Tensor, layout: Layout, caches: Sequence[KvCache]) -> Tensor:
        """Stores the tokens' KV and returns their hidden states [T, hidden], after the last norm.

        tokens, positions: int64 [T], in the order of `layout`; caches: one a layer.
        """
        eps = self.config.norm_eps
        residual = F.embedding(tokens, self.embedding)
        x = self.ops.rms_norm(residual, self.layers[0].input_norm, eps)
        norms = [layer.input_norm for layer in self.layers[1:]] + [self.norm]
        for layer, next_norm, cache in zip(self.layers, norms, caches, strict=True):
            x = layer.attention.forward(x, positions, layout, cache, self.cos_sin)
            x = self.ops.add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = layer.mlp.forward(x)
            x = self.ops.add_rms_norm(x, residual, next_norm, eps)
        return x

    def scores(self, hidden: Tensor) -> Tensor:
        """hidden: [S, hidden] -> [S, vocabulary], the logits in the model's dtype."""
        return F.linear(hidden, self.head)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [S, hidden] -> fp32 [S, vocabulary]."""
        return self.scores(hidden).float()
