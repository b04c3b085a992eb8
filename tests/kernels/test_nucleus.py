"""The threshold of top_p is the one that a sort finds, however a row is divided and whoever is in the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import reference
from kernels.nucleus import CHUNK, nucleus

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# What sums and exponentials in fp32 may shift a mass by.
ROUNDING = 1e-6

Fill = Callable[[int, torch.Generator], Tensor]


def normal(size: int, random: torch.Generator) -> Tensor:
    return torch.randn(size, generator=random)


def with_one(value: float) -> Fill:
    def fill(size: int, random: torch.Generator) -> Tensor:
        row = normal(size, random)
        row[torch.randint(size, (1,), generator=random)] = value
        return row

    return fill


def mostly_forbidden(size: int, random: torch.Generator) -> Tensor:
    return torch.where(torch.rand(size, generator=random) < 0.8, -torch.inf, normal(size, random))


KINDS: dict[str, Fill] = {
    "normal": normal,
    "steep": lambda size, random: 30 * normal(size, random),
    "flat": lambda size, random: 1e-6 * normal(size, random),
    "far from zero": lambda size, random: normal(size, random) - 5e4,
    "ties": lambda size, random: normal(size, random).mul(2).round() / 2,
    "of bf16": lambda size, random: (4 * normal(size, random)).bfloat16().float(),
    "all equal": lambda size, _: torch.full((size,), 3.25),
    "zeros of both signs": lambda size, random: normal(size, random).round() * 0,
    "one huge": with_one(3e38),
    "one low": with_one(-3e38),
    "one infinite": with_one(torch.inf),
    "mostly forbidden": mostly_forbidden,
    "all forbidden": lambda size, _: torch.full((size,), -torch.inf),
}
MASSES = [-1.0, 0.0, 1e-30, 1e-7, 0.05, 0.5, 0.9, 0.95, 0.999, 1 - 2**-24, 1.0, 2.0]


def logits(kinds: Sequence[str], size: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.stack([KINDS[kind](size, random) for kind in kinds]).to(DEVICE)


def masses(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=DEVICE)


def check(rows: Tensor, mass: Tensor) -> None:
    before = rows.clone()
    least = nucleus(rows, mass)
    assert torch.equal(rows, before), "the logits were changed"
    assert least.dtype == torch.float32
    everything = mass >= 1
    assert bool((least[everything] == -torch.inf).all())
    some, of, least = rows[~everything], mass[~everything], least[~everything]
    assert bool((some == least[:, None]).any(dim=1).all()), "a threshold is no logit of its row"
    # Masses below 1 stay so: there, a row has an end.
    assert bool((least <= reference.nucleus(some, of - ROUNDING)).all())
    assert bool((least >= reference.nucleus(some, (of + ROUNDING).clamp_max(1.0))).all())


@given(
    wanted=st.lists(
        st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from(MASSES) | st.floats(0, 1)), min_size=1, max_size=2
    ),
    size=st.integers(1, 300),
    seed=st.integers(0, 1000),
)
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # without shrinking, which takes minutes in the interpreter
    suppress_health_check=[HealthCheck.too_slow],
)
def test_any_rows(wanted: list[tuple[str, float]], size: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kernels.nucleus.CHUNK", 128)
        patch.setattr("kernels.nucleus.AT_ONCE", 32)
        check(logits([kind for kind, _ in wanted], size, seed), masses([mass for _, mass in wanted]))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_row(kind: str) -> None:
    check(logits([kind] * 3, 500, 1), masses([0.3, 0.9, 0.9999]))


def test_rows_of_several_chunks_that_are_strided() -> None:
    rows = logits(["normal", "of bf16", "all equal"], 2 * CHUNK + 17, 2)
    wide = torch.full((3, rows.shape[1] + 9), 50.0, device=DEVICE)
    wide[:, : rows.shape[1]] = rows
    check(wide[:, : rows.shape[1]], masses([0.9, 0.95, 0.5]))


def test_the_mass_of_a_tie_counts_whole() -> None:
    row = torch.tensor([[0.0, 2.0, 0.0, 1.0, 2.0, 0.0]], device=DEVICE)
    # Those at 2 have 0.721 together, with the one at 1 it is 0.854.
    for mass, least in [(0.0, 2.0), (0.3, 2.0), (0.72, 2.0), (0.73, 1.0), (0.85, 1.0), (0.86, 0.0), (0.999, 0.0)]:
        assert nucleus(row, masses([mass])).item() == least == reference.nucleus(row, masses([mass])).item()


def test_the_threshold_depends_neither_on_the_batch_nor_on_how_a_row_is_divided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds, mass = ["normal", "flat", "of bf16"], masses([0.9, 0.8, 0.95])
    rows = logits(kinds, 400, 3)
    together = nucleus(rows, mass)
    assert torch.equal(torch.cat([nucleus(rows[i : i + 1], mass[i : i + 1]) for i in range(3)]), together)
    for chunk, at_once, slices in [(256, 64, 16), (1024, 32, 2)]:
        monkeypatch.setattr("kernels.nucleus.CHUNK", chunk)
        monkeypatch.setattr("kernels.nucleus.AT_ONCE", at_once)
        monkeypatch.setattr("kernels.nucleus.SLICES", slices)
        assert torch.equal(nucleus(rows, mass), together)


def test_a_row_that_wants_everything_costs_its_neighbour_nothing() -> None:
    rows = logits(["normal", "normal"], 100, 4)
    alone = nucleus(rows[1:], masses([0.9]))
    assert nucleus(rows, masses([1.0, 0.9])).tolist() == [-torch.inf, alone.item()]
