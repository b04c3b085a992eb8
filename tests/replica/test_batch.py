"""The arrays of a step say what the step says: checked against a slow reading of the requests, whatever happens."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from replica.batch import Batch, Batcher, Inputs
from replica.blocks import Block, BlockPool, BlockTable, Namespace
from replica.decode_graphs import graph_sizes
from replica.packing import to_device
from replica.request import Limits, Request, State
from replica.sampling_params import SamplingParams
from replica.scheduler import Scheduler, SchedulerLimits, Slice, Step
from tests.replica.paged import oracle

VOCABULARY = 5
CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0.0)
NAMESPACE = Namespace("m")


def request(prompt: list[int], output: int = 8) -> Request:
    return Request(prompt, Limits(output), NAMESPACE, sampling=GREEDY)


@dataclass
class Site:
    """A scheduler and a batcher, with up to `lookahead` steps under way beside the next one."""

    scheduler: Scheduler
    batcher: Batcher
    lookahead: int
    under_way: deque[Step] = field(default_factory=deque)

    def step(self) -> None:
        step = self.scheduler.schedule()
        if step.slices:
            before = self.under_way[-1] if self.under_way else Step(())
            check(self.batcher.batch(step), step, before, self.scheduler.pool.block_size)
            self.under_way.append(step)
        if self.under_way and (not step.slices or len(self.under_way) > self.lookahead):
            done = self.under_way.popleft()
            self.scheduler.postprocess(done, [answer(part) for part in done.slices if part.samples])

    def until_idle(self) -> None:
        for _ in range(500):
            if self.scheduler.idle and not self.under_way:
                return
            self.step()
        raise AssertionError("the scheduler does not come to an end")


def answer(part: Slice) -> int:
    """Depends on all tokens so far, and is the same again after a preemption."""
    return oracle(part.request.tokens[: part.start + part.count], "")


def check(batch: Batch, step: Step, before: Step, block_size: int) -> None:
    """`before`: the step that was run last, where its tokens are not known yet."""
    inputs = batch.inputs
    parts = sorted(step.slices, key=lambda part: not part.is_decode)
    decodes = sum(part.is_decode for part in parts)
    samplers = [part.request for part in before.slices if part.samples]
    ends = np.cumsum([part.count for part in parts]).tolist()
    for part, end, row in zip(parts, ends, range(len(parts)), strict=True):
        known, blocks = part.request.tokens, [block.index for block in part.request.table.blocks]
        context = part.start + part.count
        for position in range(part.start, context):
            at = end - context + position
            assert inputs.positions[at] == position
            assert inputs.slots[at] == blocks[position // block_size] * block_size + position % block_size
            if position < len(known):
                assert inputs.tokens[at] == known[position]
                assert row >= decodes or inputs.sources[row] == -1
            else:
                assert samplers[inputs.sources[row]] is part.request
        needed = -(-context // block_size)
        assert inputs.context_lens[row] == context
        assert inputs.block_tables[row, :needed].tolist() == blocks[:needed]
    assert inputs.query_starts.tolist() == [0] + [end - decodes for end in ends[decodes:]]
    lasts = {part.request: end - 1 for part, end in zip(parts, ends, strict=True)}
    assert inputs.last_rows.tolist() == [lasts[part.request] for part in step.slices if part.samples]
    check_padding(batch, inputs, decodes, ends[-1])
    contexts = [part.start + part.count for part in parts]
    assert (batch.longest_decode, batch.longest_prefill, batch.longest_query) == (
        max(contexts[:decodes], default=0),
        max(contexts[decodes:], default=0),
        max((part.count for part in parts[decodes:]), default=0),
    )
    assert (batch.prefills, batch.samples) == (len(parts) - decodes, step.samples)


def check_padding(batch: Batch, inputs: Inputs[NDArray[Any]], decodes: int, tokens: int) -> None:
    assert batch.decodes == (decodes if batch.prefills else next(size for size in graph_sizes(4) if size >= decodes))
    assert (inputs.slots[tokens:] == -1).all()
    assert (inputs.sources[decodes:] == -1).all()
    assert (inputs.context_lens[decodes : batch.decodes] == 0).all() or batch.prefills
    assert len(inputs.slots) == len(inputs.tokens) == len(inputs.positions) == tokens + batch.decodes - decodes
    assert len(inputs.context_lens) == len(inputs.block_tables) == batch.decodes + batch.prefills


@given(
    prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14), min_size=1, max_size=12),
    blocks=st.integers(11, 30),
    budget=st.integers(4, 20),
    lookahead=st.integers(0, 1),
    sharing=st.booleans(),
    cancelled=st.sets(st.integers(0, 6), max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_a_batch_says_what_its_step_says_through_sharing_preemption_and_cancellation(
    prompts: list[list[int]], blocks: int, budget: int, lookahead: int, sharing: bool, cancelled: set[int]
) -> None:
    scheduler = Scheduler(BlockPool(blocks, 2, sharing=sharing), SchedulerLimits(budget, 4))
    batcher = Batcher(4, 11, 2, VOCABULARY, padding=lambda rows: next(size for size in graph_sizes(4) if size >= rows))
    site = Site(scheduler, batcher, lookahead)
    requests = [request(prompt) for prompt in prompts]
    for one in requests:
        scheduler.add(one)
        site.step()
    for index in cancelled:
        if index < len(requests):
            scheduler.cancel(requests[index])
        site.step()
    site.until_idle()

    assert all(one.state is State.FINISHED for one in requests)


def test_a_block_that_became_shared_is_seen_in_the_next_batch() -> None:
    pool = BlockPool(8, 2)
    batcher = Batcher(2, 4, 2, VOCABULARY)
    first, second = request([1, 2, 3]), request([1, 2, 3])
    for one in (first, second):
        one.table = BlockTable(NAMESPACE)
        assert pool.grow(one.table, 5)
    both = [Slice(one, 0, 3, samples=True) for one in (first, second)]
    batcher.batch(Step(tuple(both)))
    for one in (first, second):
        pool.store(one.table, one.packed, 3)
        one.take(4)
    assert first.table.blocks[0] is second.table.blocks[0]

    batch = batcher.batch(Step(tuple(Slice(one, 3, 1, samples=True) for one in (first, second))))

    tables = batch.inputs.block_tables[:, :2].tolist()
    assert tables == [[block.index for block in one.table.blocks[:2]] for one in (first, second)]
    assert tables[0][0] == tables[1][0]


def test_another_table_of_the_same_request_is_seen_in_the_next_batch() -> None:
    batcher = Batcher(1, 4, 2, VOCABULARY)
    one = request([1, 2])
    for index in (3, 5):
        one.table = BlockTable(NAMESPACE, [Block(index)])
        batch = batcher.batch(Step((Slice(one, 0, 2, samples=True),)))
        assert batch.inputs.block_tables[0, 0] == index


def test_a_token_that_is_not_known_yet_is_read_from_the_samples_of_the_step_before() -> None:
    batcher = Batcher(4, 4, 2, VOCABULARY)
    requests = [request([1]), request([1, 2]), request([3])]
    for one in requests:
        one.table = BlockTable(NAMESPACE, [Block(0), Block(1)])
    batcher.batch(Step(tuple(Slice(one, 0, one.prompt_tokens, samples=True) for one in requests)))

    batch = batcher.batch(Step(tuple(Slice(one, one.prompt_tokens, 1, samples=True) for one in requests[::-1])))

    assert batch.guesses
    assert batch.inputs.sources.tolist() == [2, 1, 0]


def test_a_step_that_does_not_fit_is_refused_and_the_next_one_is_served() -> None:
    batcher = Batcher(2, 2, 2, VOCABULARY)
    good, unknown, long = request([1, 2]), request([VOCABULARY]), request([1] * 5)
    for one in (good, unknown, long):
        one.table = BlockTable(NAMESPACE, [Block(index) for index in range(-(-one.prompt_tokens // 2))])

    def whole(*requests: Request) -> Step:
        return Step(tuple(Slice(one, 0, one.prompt_tokens, samples=True) for one in requests))

    with pytest.raises(ValueError, match="token id 5 is not of this model"):
        batcher.batch(whole(unknown))
    with pytest.raises(ValueError, match="--max-model-len"):
        batcher.batch(whole(long))
    with pytest.raises(ValueError, match="3 requests"):
        batcher.batch(whole(good, good, good))
    with pytest.raises(ValueError, match="did not sample"):
        batcher.batch(Step((Slice(good, 2, 1, samples=True),)))

    assert batcher.batch(whole(good)).inputs.tokens.tolist() == [1, 2]


def test_packed_tokens_can_grow_after_a_batch_was_made_of_them() -> None:
    batcher = Batcher(1, 4, 2, VOCABULARY)
    one = Request([1, 2], Limits(4), NAMESPACE, sampling=SamplingParams(repetition_penalty=1.1))
    one.table = BlockTable(NAMESPACE, [Block(0), Block(1)])
    batch = batcher.batch(Step((Slice(one, 0, 2, samples=True),)))

    one.take(3)

    assert batch.inputs.tokens.tolist() == [1, 2]
    assert batch.plan is not None


def test_arrays_come_out_of_one_copy_as_they_went_in() -> None:
    arrays = [
        np.array([2**40, -1]),
        np.array([], np.int64),
        np.array([[1, 2], [3, -4]], np.int32),
        np.array([0.5, -np.inf, 3], np.float32),
        np.array([[1], [2], [3]]),
    ]

    tensors = to_device(arrays, CPU)

    assert all(np.array_equal(tensor.numpy(), array) for tensor, array in zip(tensors, arrays, strict=True))
    assert all(tensor.data_ptr() % 16 == tensors[0].data_ptr() % 16 for tensor in tensors)
