"""Every token goes through the experts chosen for it, weighted, and through no other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.experts import experts, routed, tiling

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def layer(tokens: int, hidden: int, width: int, count: int, k: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, gate_up, down, chosen and weights. The last expert is never chosen where there is another."""
    generator = torch.Generator().manual_seed(tokens * count + k)
    x = torch.randn(tokens, hidden, generator=generator)
    gate_up = torch.randn(count, 2 * width, hidden, generator=generator) / hidden**0.5
    down = torch.randn(count, hidden, width, generator=generator) / width**0.5
    scores = torch.rand(tokens, count, generator=generator)
    scores[:, -1] -= 2
    weights, chosen = scores.topk(k)
    return *(t.to(DEVICE, dtype) for t in (x, gate_up, down)), chosen.to(DEVICE), weights.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("tokens", "hidden", "width", "count", "k"),
    [(1, 48, 40, 8, 2), (5, 48, 40, 5, 2), (2, 20, 33, 17, 8), (40, 33, 17, 3, 1), (9, 64, 32, 2, 2)],
)
def test_experts_compute_what_the_reference_does(
    tokens: int, hidden: int, width: int, count: int, k: int, dtype: torch.dtype
) -> None:
    arguments = layer(tokens, hidden, width, count, k, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(
        experts(*arguments), reference.experts(*arguments), rtol=tolerance, atol=tolerance, check_dtype=True
    )


def test_the_reference_is_the_sum_over_each_tokens_experts() -> None:
    x, gate_up, down, chosen, weights = layer(4, 12, 10, 6, 3, torch.float32)
    for row, answer in zip(range(4), reference.experts(x, gate_up, down, chosen, weights), strict=True):
        gate, up = torch.einsum("eih,h->ei", gate_up[chosen[row]], x[row]).chunk(2, dim=-1)
        outs = torch.einsum("ehi,ei->eh", down[chosen[row]], torch.nn.functional.silu(gate) * up)
        torch.testing.assert_close(answer, (weights[row, :, None] * outs).sum(0), rtol=1e-5, atol=1e-5)


def test_an_expert_that_nobody_chose_is_not_read() -> None:
    x, gate_up, down, chosen, weights = layer(3, 32, 16, 4, 2, torch.float32)
    expected = experts(x, gate_up, down, chosen, weights)
    gate_up[-1], down[-1] = torch.nan, torch.nan
    assert torch.equal(experts(x, gate_up, down, chosen, weights), expected)
    assert torch.equal(reference.experts(x, gate_up, down, chosen, weights).isnan(), torch.zeros_like(x).bool())


def test_a_tokens_answer_does_not_depend_on_its_neighbours() -> None:
    x, gate_up, down, chosen, weights = layer(6, 32, 16, 4, 2, torch.float32)
    together = experts(x, gate_up, down, chosen, weights)
    some = torch.tensor([4, 1], device=DEVICE)
    assert torch.equal(experts(x[some], gate_up, down, chosen[some], weights[some]), together[some])


@pytest.mark.parametrize(("tokens", "count", "k"), [(1, 8, 8), (7, 3, 2), (30, 2, 1), (700, 5, 2)])
def test_routing_lists_every_pair_once_in_tiles_of_one_expert(tokens: int, count: int, k: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    chosen = torch.rand(tokens, count, generator=generator).topk(k).indices.to(DEVICE)
    order, tiles = routed(chosen, count, rows=16)
    assert sorted(order.tolist()) == list(range(tokens * k))
    covered: list[int] = []
    for expert, begin, end in tiles.T.tolist():
        assert end - begin <= 16
        assert {int(chosen.flatten()[pair]) for pair in order[begin:end]} <= {expert}
        covered += range(begin, end)
    assert sorted(covered) == list(range(tokens * k))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_few_pairs_an_expert_get_small_tiles_and_many_get_large_ones(dtype: torch.dtype) -> None:
    rows = [tiling(pairs, 8, dtype).rows for pairs in (1, 128, 384, 768, 10_000)]
    assert rows == sorted(rows)
    assert rows[0] == 16
