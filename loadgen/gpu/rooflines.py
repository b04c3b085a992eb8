"""What a GPU must at least do for a piece of work: the bytes to move, the operations to compute.

Owns this arithmetic and the shapes that are measured; plain Python, no torch. Must never measure anything.

Bytes count each input read once; what is computed from and written to the caches within a kernel is left out.
Operations are multiplications and additions of matrix products, two for each pair of factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Heads:
    """The attention of one layer: query heads, KV heads, head dimension."""

    query: int
    kv: int
    dim: int

    def __str__(self) -> str:
        return f"{self.query}/{self.kv} D {self.dim}"


def kv_bytes(heads: Heads, tokens: int, element_bytes: int) -> int:
    """Keys and values of `tokens` tokens in one layer."""
    return 2 * tokens * heads.kv * heads.dim * element_bytes


def visible_pairs(query: int, context: int) -> int:
    """Pairs (query token, token it sees) when the query tokens are the last `query` of `context`, causally."""
    return query * (context - query) + query * (query + 1) // 2


def attention_flops(heads: Heads, query: int, context: int) -> int:
    """Scores and weighted values of one sequence in one layer; pairs that the mask hides count nothing."""
    return 4 * heads.query * heads.dim * visible_pairs(query, context)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Llama's sizes. Embedding and output projection are two matrices; weights take `weight_bytes` each."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: Heads
    weight_bytes: int = 2

    @property
    def layer_weights(self) -> int:
        """Weights of the matrix products of one layer."""
        attention = 2 * self.hidden * self.heads.dim * (self.heads.query + self.heads.kv)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def read_weights(self) -> int:
        """Weights that every step reads: all but the embedding, of which it reads a row a token."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.layers * self.layer_weights + norms + self.vocabulary * self.hidden

    @property
    def all_weights(self) -> int:
        return self.read_weights + self.vocabulary * self.hidden

    def kv_token_bytes(self, element_bytes: int = 2) -> int:
        """KV of one token in all layers."""
        return self.layers * kv_bytes(self.heads, 1, element_bytes)

    def decode_step_bytes(self, context_tokens: int, element_bytes: int = 2) -> int:
        """What one decode step must read. `context_tokens`: the sum over its sequences."""
        return self.read_weights * self.weight_bytes + context_tokens * self.kv_token_bytes(element_bytes)

    def prefill_flops(self, query: int, context: int, sampled: int) -> int:
        """Operations of a step over `query` tokens of one sequence, the last of `context`, that samples `sampled`."""
        products = 2 * (self.layers * self.layer_weights * query + self.vocabulary * self.hidden * sampled)
        return products + self.layers * attention_flops(self.heads, query, context)

    def config(self) -> dict[str, Any]:
        """The config.json of such a model, as Hugging Face writes it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary,
            "num_attention_heads": self.heads.query,
            "num_key_value_heads": self.heads.kv,
            "head_dim": self.heads.dim,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16" if self.weight_bytes == 2 else "float32",
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


LLAMA_HEADS = Heads(32, 8, 128)
QWEN_HEADS = Heads(28, 4, 128)  # Qwen2.5-7B: seven query heads to a KV head, no power of two
TINY_HEADS = Heads(4, 2, 16)

LLAMA_8B = ModelShape("Llama-3.1-8B", 32, 4096, 14336, 128256, LLAMA_HEADS)
TINY = ModelShape("tiny", 2, 64, 128, 256, TINY_HEADS, weight_bytes=4)
