"""Philox 4x32-10 in torch, and the noise of a draw made from it.

Owns the numbers: which bits belong to (seed, position, token id), and how they become Gumbel noise. `sampling.py`
computes the same numbers in Triton. Must never depend on torch's own generators or on the batch.

The generator is that of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). torch has no unsigned
32-bit arithmetic, so words are kept in int64.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF

# Below this, 1 - x loses more digits of x than the short series of log(1 - x) is wrong by.
SERIES_BELOW = 2.0**-8


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The four words of each counter under its key. All are int64 tensors of 32-bit words, of shapes that broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The product may wrap around int64; its 64 bits are right all the same.
        left, right = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = (right >> 32 & WORD) ^ c1 ^ k0, right & WORD
        c2, c3 = (left >> 32 & WORD) ^ c3 ^ k1, left & WORD
        k0, k1 = k0 + WEYL[0] & WORD, k1 + WEYL[1] & WORD
    return c0, c1, c2, c3


def token_bits(seeds: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """32 random bits for every token id: int64 [S, vocabulary], from seeds and positions int64 [S].

    Key: the seed. Counter: (token id // 4, position's low and high word, 0); the token takes word (id % 4).
    """
    groups = torch.arange((vocabulary + 3) // 4, device=seeds.device)[None, :]
    seed, position = seeds[:, None], positions[:, None]
    counter = (groups, position & WORD, position >> 32 & WORD, torch.zeros_like(groups))
    words = philox(counter, (seed & WORD, seed >> 32 & WORD))
    return torch.stack(words, dim=-1).flatten(1)[:, :vocabulary]


def gumbel(bits: Tensor) -> Tensor:
    """Standard Gumbel noise, fp32, from 32 random bits each: -log(-log(1 - u)) with u = bits / 2^32.

    The winners of a draw are those with small u, and there fp32 has digits to spare: u is not rounded to 2^-24, so that
    a large vocabulary hardly ever ties. u stays off 0 and 1; the noise lies between -2.9 and 22.9.
    """
    u = (bits.to(torch.float32) * 2.0**-32).clamp(2.0**-33, 1 - 2.0**-24)
    series = u * (1 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4))))
    return -torch.where(u < SERIES_BELOW, series, -torch.log(1 - u)).log()
