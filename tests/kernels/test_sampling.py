"""A draw is decided by seed, position and logits alone, and follows the softmax."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import reference
from kernels.philox import gumbel, philox, token_bits
from kernels.sampling import TILE, sample
from kernels.sampling import token_bits as triton_token_bits

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEEDS = [0, 1, -5, 2**40 + 3, -(2**63)]
POSITIONS = [0, 7, 2**33, 1, 131_071]


def longs(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


def words(text: str) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(int(word, 16)) for word in text.split())


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the vectors published with Random123
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_numbers(counter: str, key: str, expected: str) -> None:
    c0, c1, c2, c3 = words(counter)
    k0, k1 = words(key)
    assert tuple(int(word) for word in philox((c0, c1, c2, c3), (k0, k1))) == tuple(map(int, words(expected)))


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _write_bits(seeds: Any, positions: Any, out: Any, group: Any, tile: tl.constexpr) -> None:
    row = tl.program_id(0)
    bits = triton_token_bits(tl.load(seeds + row), tl.load(positions + row), group, tile)
    tl.store(out + row * tile + tl.arange(0, tile), bits.to(tl.int64))


@pytest.mark.parametrize("first", [0, 65_536])
def test_the_kernel_has_the_references_bits(first: int) -> None:
    seeds, positions = longs(SEEDS), longs(POSITIONS)
    out = torch.empty(len(SEEDS), 64, dtype=torch.int64, device=DEVICE)
    _write_bits[(len(SEEDS),)](seeds, positions, out, first // 4, tile=64)
    assert torch.equal(out, token_bits(seeds, positions, first + 64)[:, first:])


def test_bits_of_different_seeds_positions_and_tokens_differ() -> None:
    bits = torch.cat([token_bits(longs([seed]), longs([position]), 64) for seed in SEEDS for position in POSITIONS])
    assert len(set(bits.flatten().tolist())) == bits.numel()
    assert torch.equal(
        bits[:, :10], torch.cat([token_bits(longs([s]), longs([p]), 10) for s in SEEDS for p in POSITIONS])
    )


def test_noise_is_gumbels_and_always_finite() -> None:
    noise = gumbel(token_bits(longs([3]), longs([4]), 200_000)).double()
    assert abs(noise.mean() - 0.5772) < 0.01
    assert abs(noise.var() - math.pi**2 / 6) < 0.02
    extremes = gumbel(longs([0, 1, 2**24, 2**32 - 1]))
    assert bool(extremes.isfinite().all())
    assert extremes.tolist() == sorted(extremes.tolist(), reverse=True)


@pytest.mark.parametrize("vocabulary", [2, 1000, TILE, 3 * TILE + 7, 13 * TILE + 1])
def test_kernel_and_reference_draw_the_same_token(vocabulary: int) -> None:
    rows = 3 if vocabulary < 4 * TILE else 1
    logits = torch.randn(rows, vocabulary + 5, generator=torch.Generator().manual_seed(vocabulary)).to(DEVICE)
    logits = 2 * logits[:, :vocabulary]
    seeds, positions = longs(SEEDS[:rows]), longs(POSITIONS[:rows])
    drawn = sample(logits, seeds, positions)
    assert drawn.dtype == torch.int64
    assert drawn.tolist() == reference.sample(logits, seeds, positions).tolist()


def test_a_draw_does_not_depend_on_the_batch() -> None:
    logits = torch.randn(4, 3 * TILE, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    seeds, positions = longs(SEEDS[:4]), longs(POSITIONS[:4])
    together = sample(logits, seeds, positions).tolist()
    # Alone, a row is split over more programs than in company.
    alone = [sample(logits[row : row + 1], seeds[row : row + 1], positions[row : row + 1]).item() for row in range(4)]
    assert alone == together


def test_what_must_not_be_drawn_never_is() -> None:
    logits = torch.full((5, 2 * TILE + 3), -torch.inf, device=DEVICE)
    only = [0, 5, TILE, 2 * TILE - 1, 2 * TILE + 2]
    logits[torch.arange(5), only] = -80.0
    assert sample(logits, longs(SEEDS), longs(POSITIONS)).tolist() == only
    assert reference.sample(logits, longs(SEEDS), longs(POSITIONS)).tolist() == only


@pytest.mark.parametrize("value", [-torch.inf, torch.nan, torch.inf])
def test_senseless_logits_still_give_a_token_of_the_vocabulary(value: float) -> None:
    logits = torch.full((1, TILE + 9), value, device=DEVICE)
    assert 0 <= sample(logits, longs([1]), longs([1])).item() < TILE + 9


def test_frequencies_follow_the_softmax() -> None:
    draws = 8192
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5], device=DEVICE).expand(draws, 5)
    drawn = reference.sample(logits, torch.full((draws,), 42, device=DEVICE), torch.arange(draws, device=DEVICE))
    expected = logits[0].double().softmax(-1) * draws
    chi_square = ((torch.bincount(drawn, minlength=5) - expected).square() / expected).sum().item()
    assert chi_square < 13.3  # 4 degrees of freedom: one in a hundred, for one fixed seed
