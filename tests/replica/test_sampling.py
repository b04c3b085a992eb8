"""Whatever is sampled together: each row's token is the one that a slow reading of its own parameters gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels import reference
from kernels.philox import gumbel, token_bits
from replica.blocks import Namespace
from replica.draws import Draws, gather
from replica.packing import to_device
from replica.request import Limits, Request
from replica.rows import Rows
from replica.sampling import sample
from replica.sampling_params import SamplingParams, TokenLogprobs
from replica.scheduler import Slice

VOCABULARY = 12
CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True)
class Case:
    """One row: `output` ends with a token that only the device knows if it is `pending`."""

    params: SamplingParams
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    pending: bool
    logits: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    tokens: list[int]
    logprobs: list[tuple[float, list[tuple[int, float]]] | None]


tokens = st.integers(0, VOCABULARY - 1)
# Steps of a quarter, so that ties are frequent.
logits = st.integers(0, 2**32).map(
    lambda seed: tuple((np.random.default_rng(seed).integers(-20, 21, VOCABULARY) / 4).tolist())
)
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-9, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, -1, 1, 2, 5, VOCABULARY, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.61, 0.3, 1e-6, 0.0]),
    min_p=st.sampled_from([0.0, 0.07, 0.4, 1.0]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.3, -0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.6, -0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.5, 0.8]),
    seed=st.one_of(st.integers(0, 3), st.integers(-(2**64), 2**65)),
    logprobs=st.sampled_from([None, None, 0, 1, 5]),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    output = draw(st.lists(tokens, max_size=6).map(tuple))
    pending = bool(output) and draw(st.booleans())
    prompt = draw(st.lists(tokens, min_size=1, max_size=6).map(tuple))
    return Case(draw(params), prompt, output, pending, draw(logits))


def sampled(batch: Sequence[Case]) -> Answer:
    """What the batch gets, all its rows at once."""
    rows, slices, previous = Rows(len(batch), 1), [], {}
    rows.begin_step()
    for index, case in enumerate(batch):
        request = Request(case.prompt, Limits(100), Namespace("m"), sampling=case.params)
        for token in case.output[: len(case.output) - case.pending]:
            request.take(token, TokenLogprobs(0.0, ()))
        if case.pending:
            previous[request] = index
        slices.append(Slice(request, len(case.prompt) + len(case.output) - 1, 1, samples=True))
        rows.of(request)
    left = torch.tensor([case.output[-1] if case.pending else 0 for case in batch])
    matrix = torch.tensor([case.logits for case in batch])
    gathered = gather(slices, rows, previous.__getitem__)
    if gathered is None:
        return Answer(matrix.argmax(dim=-1).tolist(), [None] * len(batch))
    arrays, plan = gathered
    draws: Draws[torch.Tensor] = Draws(*to_device(arrays, CPU))
    before = matrix.clone()
    chosen, likely = sample(matrix, draws, plan, reference, left)
    assert torch.equal(matrix, before), "the model's logits were changed"
    logprobs: list[tuple[float, list[tuple[int, float]]] | None] = [None] * len(batch)
    if likely is not None:
        for row, own, values, ids in zip(
            draws.wanted.tolist(), *(part.tolist() for part in likely[:2]), likely.tokens.tolist(), strict=True
        ):
            logprobs[row] = own, list(zip(ids, values, strict=True))[: plan.likeliest[row]]
    return Answer(chosen.tolist(), logprobs)


def expected(case: Case) -> int:
    """The same, one rule after the other, in the same precision. Gives up where a sum's last bits decide."""
    params, scores = case.params, np.array(case.logits, np.float32)
    f32 = np.float32
    for token in range(VOCABULARY):
        if token in case.prompt + case.output:
            factor = f32(params.repetition_penalty)
            scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
        if count := case.output.count(token):
            scores[token] -= f32(params.frequency_penalty) * f32(count) + f32(params.presence_penalty)
    if params.greedy:
        return int(scores.argmax())
    scores /= f32(max(params.temperature, 1e-6))
    best = np.sort(scores.astype(np.float64))[::-1]
    likely = np.exp(best - best[0])
    if params.top_k > 0:
        likely = likely[: params.top_k]
    count = len(likely)
    if params.top_p < 1:
        before = (np.cumsum(likely) - likely) / likely.sum()
        assume(np.abs(before[1:] - params.top_p).min(initial=1) > 1e-4)
        count = max(1, int((before < params.top_p).sum()))
    allowed = scores >= best[count - 1]  # and what ties with the last one kept
    if params.min_p > 0:
        shares = np.exp(scores.astype(np.float64) - best[0])
        assume(np.abs(shares[shares < 1] - params.min_p).min(initial=1) > 1e-4)
        allowed &= shares >= params.min_p
    return int(np.where(allowed, scores + noise(params.seed, len(case.prompt) + len(case.output)), -np.inf).argmax())


def noise(seed: int, position: int) -> NDArray[np.float32]:
    bits = token_bits(torch.tensor([(seed + 2**63) % 2**64 - 2**63]), torch.tensor([position]), VOCABULARY)
    return np.asarray(gumbel(bits)[0].numpy())


@given(st.lists(cases(), min_size=1, max_size=5))
@settings(max_examples=120, deadline=None)
def test_every_row_of_a_batch_gets_the_token_that_its_own_parameters_say(batch: list[Case]) -> None:
    tokens = [expected(case) for case in batch]

    assert sampled(batch).tokens == tokens


@given(st.lists(cases(), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_logprobs_are_those_of_the_model_before_penalties_and_temperature(batch: list[Case]) -> None:
    answer = sampled(batch)

    for case, token, logprobs in zip(batch, answer.tokens, answer.logprobs, strict=True):
        total = math.log(sum(math.exp(value) for value in case.logits))
        own = [value - total for value in case.logits]
        if case.params.logprobs is None:
            assert logprobs is None
            continue
        assert logprobs is not None
        chosen, top = logprobs
        assert chosen == pytest.approx(own[token], abs=1e-5)
        assert [value for _, value in top] == pytest.approx(sorted(own, reverse=True)[: case.params.logprobs], abs=1e-5)
        assert len({token for token, _ in top}) == len(top) == case.params.logprobs
        assert all(value == pytest.approx(own[token], abs=1e-5) for token, value in top)


def test_the_likeliest_may_be_wanted_more_often_by_one_row_than_by_its_neighbour() -> None:
    row = Case(replace(GREEDY, logprobs=1), (1,), (), False, tuple(map(float, range(VOCABULARY))))
    more = replace(row, params=replace(GREEDY, logprobs=3))

    first, second = sampled([row, more]).logprobs

    assert first is not None
    assert second is not None
    assert [token for token, _ in first[1]] == [11]
    assert [token for token, _ in second[1]] == [11, 10, 9]


def test_a_row_draws_the_same_token_whoever_is_drawn_beside_it() -> None:
    generator = torch.Generator().manual_seed(0)
    some = [
        Case(
            SamplingParams(1.0, top_k=k, top_p=p, seed=seed),
            (1,),
            (),
            False,
            tuple(torch.randn(VOCABULARY, generator=generator).tolist()),
        )
        for seed, (k, p) in enumerate([(0, 1.0), (3, 1.0), (0, 0.7), (9, 0.7), (0, 0.9)])
    ]

    assert sampled(some).tokens == [sampled([one]).tokens[0] for one in some] == sampled(some[::-1]).tokens[::-1]


def test_greedy_rows_alone_need_no_parameters_on_the_device() -> None:
    rows = Rows(1, 1)
    request = Request([1], Limits(1), Namespace("m"), sampling=GREEDY)
    rows.of(request)

    assert gather([Slice(request, 0, 1, samples=True)], rows, lambda _: 0) is None
