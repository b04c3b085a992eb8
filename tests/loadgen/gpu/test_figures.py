"""Figures of the GPU benchmark: rooflines, goals, the time of a step, and what its attention is checked against."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.gpu.drive import Drive, Enough, StepRecord, drive, request
from loadgen.gpu.report import COPY, GEMM, GOALS, READ, ceilings_of, quantity, row, verdicts_on
from loadgen.gpu.rooflines import LLAMA_8B, LLAMA_HEADS, attention_flops, kv_bytes, visible_pairs
from replica.blocks import BlockPool
from replica.runner import Sampled
from replica.scheduler import SchedulerLimits, Step

H200_BANDWIDTH = 4.8e12


# Arithmetic -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 40))
def test_visible_pairs_are_those_of_a_causal_mask(query: int, before: int) -> None:
    context = before + query
    counted = sum(1 for q in range(before, context) for k in range(context) if k <= q)
    assert visible_pairs(query, context) == counted


def test_the_llama_shape_has_llamas_sizes() -> None:
    assert LLAMA_8B.all_weights == 8_030_261_248
    assert LLAMA_8B.kv_token_bytes() == 128 * 1024
    assert kv_bytes(LLAMA_HEADS, 1, 2) * 32 == 128 * 1024
    assert attention_flops(LLAMA_HEADS, 1, 1000) == 4 * 32 * 128 * 1000


@pytest.mark.parametrize(
    ("batch", "context", "rate"), [(1, 1024, 317), (32, 2048, 6511), (128, 2048, 12447), (64, 8192, 3669)]
)
def test_the_roofline_of_a_decode_step_is_weights_and_kv_over_bandwidth(batch: int, context: int, rate: int) -> None:
    seconds = LLAMA_8B.decode_step_bytes(batch * context) / H200_BANDWIDTH
    assert batch / seconds == pytest.approx(rate, rel=2e-3)


def test_prefill_counts_two_operations_a_weight_and_token() -> None:
    flops = LLAMA_8B.prefill_flops(8192, 8192, 1)
    products = 2 * 8192 * LLAMA_8B.layers * LLAMA_8B.layer_weights
    attention = 32 * 4 * 32 * 128 * 8192 * 8193 // 2
    assert flops == products + attention + 2 * 128256 * 4096


def test_ratios_are_taken_of_the_faster_of_copying_and_reading() -> None:
    found = [row(COPY, 4.2e12, "B/s"), row(READ, 4.4e12, "B/s"), row(GEMM, 8e14, "FLOP/s")]
    assert ceilings_of(found).bandwidth == 4.4e12
    assert ceilings_of(found[:1]).bandwidth == 4.2e12
    assert ceilings_of(found).gemm == 8e14
    assert ceilings_of([]).bandwidth is None


def test_a_goal_is_reached_when_every_row_reaches_it_and_names_the_furthest() -> None:
    found = [
        row("good", 1.0, "×", goals={"decode": 0.8, "wall": 1.05}),
        row("bad", 1.0, "×", goals={"decode": 0.7, "wall": 1.2}),
        row("fine", 1.0, "×", goals={"prefill": 3e14}),
    ]
    verdicts = {verdict.key: verdict for verdict in verdicts_on(found)}
    assert list(verdicts) == [goal.key for goal in GOALS]
    decode, wall, prefill = verdicts["decode"], verdicts["wall"], verdicts["prefill"]
    assert (decode.measured, decode.where, decode.rows_met, decode.rows, decode.met) == (0.7, "bad", 1, 2, False)
    assert (wall.measured, wall.where, wall.met) == (1.2, "bad", False)
    assert (prefill.measured, prefill.met) == (3e14, True)
    assert (verdicts["long"].measured, verdicts["long"].met) == (None, None)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (4.312e12, "B/s", "4.31 TB/s"),
        (7.9e14, "FLOP/s", "790 TFLOP/s"),
        (6511.4, "tok/s", "6,511 tok/s"),
        (0.0123, "s", "12.3 ms"),
        (3.1e-5, "s", "31 µs"),
        (16.02, "s", "16 s"),
        (1.0432, "×", "1.04 ×"),
    ],
)
def test_figures_are_shown_with_three_digits_and_a_prefix(value: float, unit: str, shown: str) -> None:
    assert quantity(value, unit) == shown


def record(rows: int, tokens: int, decodes: bool, context: int, ended: float) -> StepRecord:
    return StepRecord(rows, tokens, decodes, context, ended)


def test_the_time_of_a_step_is_from_the_end_of_the_one_before() -> None:
    steps = [
        record(2, 100, False, 100, 1.0),
        record(2, 100, False, 200, 1.5),
        record(2, 2, True, 202, 1.75),  # follows a prefill: not counted
        record(2, 2, True, 204, 1.8),
        record(2, 2, True, 206, 1.9),
        record(1, 1, True, 104, 2.5),
    ]
    done = Drive(steps, 2.5, 200, 7, 0, 0)
    pace = done.decoding(2)
    assert pace.seconds == pytest.approx(0.075)
    assert (pace.context, pace.steps) == (205, 2)
    assert done.prefilling(100) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="3 requests"):
        done.decoding(3)


class Echo:
    """A runner that answers every request with one token, until it has run `steps` steps."""

    lookahead = 1

    def __init__(self, steps: int) -> None:
        self.steps = steps

    async def run(self, step: Step) -> Sampled:
        self.steps -= 1
        if self.steps < 0:
            raise RuntimeError("out of memory")
        return Sampled([1] * step.samples)


def driven(steps: int, enough: Enough | None) -> Drive:
    asked = [request([1, 2, 3, number], 20) for number in range(3)]
    return drive(Echo(steps), BlockPool(100, 16), SchedulerLimits(64, 4), asked, enough)


def test_a_drive_ends_when_all_is_answered_or_when_it_has_seen_enough() -> None:
    whole = driven(1000, None)
    assert (whole.prompt_tokens, whole.output_tokens, len(whole.steps)) == (12, 60, 20)
    part = driven(1000, Enough(3, 5))
    assert 6 <= len(part.steps) < 20
    assert part.decoding(3).steps >= 4
    assert [step.decodes for step in whole.steps] == [False] + [True] * 19


def test_a_drive_that_fails_or_never_sees_enough_says_so() -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        driven(4, None)
    with pytest.raises(RuntimeError, match="30 steps"):
        driven(1000, Enough(3, 30))


# Pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query_len", [1, 20])
def test_an_output_read_through_a_wrong_block_table_is_found_out(query_len: int) -> None:
    import torch

    from kernels import reference
    from kernels.ops import Attending
    from loadgen.gpu.pages import random_pages, relative_error
    from loadgen.gpu.rooflines import TINY_HEADS

    pages = random_pages(
        TINY_HEADS,
        (70, 33),
        query_len=query_len,
        kv_dtype=torch.float8_e4m3fn,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    attend = reference.paged_decode if query_len == 1 else reference.paged_prefill
    assert relative_error(pages, attend(pages.query, pages.caches[0], pages.paged, Attending(pages.scale))) < 1e-5
    shifted = replace(pages.paged, block_tables=pages.paged.block_tables.flip(0))
    wrong = attend(pages.query, pages.caches[0], shifted, Attending(pages.scale))
    assert relative_error(pages, wrong) > 0.1
    assert not relative_error(pages, wrong * float("nan")) <= 1e9, "what is not a number is never right"


@pytest.mark.parametrize(("query_len", "blocks"), [(1, 3), (128, 1), (256, 5)])
def test_the_paged_mask_lists_and_shows_exactly_the_causal_tokens(query_len: int, blocks: int) -> None:
    import torch

    from loadgen.gpu.peers import FLEX_PAGE, paged_mask

    batch, context = 2, blocks * FLEX_PAGE
    table = torch.randperm(batch * blocks, generator=torch.Generator().manual_seed(1)).view(batch, blocks)
    mask = paged_mask(table, query_len)
    zero, query = torch.tensor(0), torch.arange(query_len)[:, None]
    for sequence in range(batch):
        physical = (table[sequence][:, None] * FLEX_PAGE + torch.arange(FLEX_PAGE)).flatten()
        expected = torch.zeros(query_len, batch * context, dtype=torch.bool)
        expected[:, physical] = torch.arange(context) <= query + context - query_len
        seen = mask.mask_mod(torch.tensor(sequence), zero, query, torch.arange(batch * context))
        assert torch.equal(seen, expected)
        for row_of_blocks, part in enumerate(torch.split(expected, FLEX_PAGE)):
            visible = part.view(len(part), -1, FLEX_PAGE)
            at = (sequence, 0, row_of_blocks)
            assert mask.full_kv_num_blocks is not None
            assert mask.full_kv_indices is not None
            whole = mask.full_kv_indices[at][: mask.full_kv_num_blocks[at]].tolist()
            partly = mask.kv_indices[at][: mask.kv_num_blocks[at]].tolist()
            assert visible[:, whole].all(), "a block that is seen whole is not masked any more"
            assert {*whole, *partly} == set(visible.any(dim=(0, 2)).nonzero().flatten().tolist())
            assert len(whole) + len(partly) == len({*whole, *partly})
