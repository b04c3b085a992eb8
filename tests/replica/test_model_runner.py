"""A tiny real model through the real engine: what it says depends on the requests, and on nothing else."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from itertools import combinations, product
from pathlib import Path
from random import Random

import pytest
import torch

from replica.blocks import Block, BlockPool, BlockTable
from replica.decode_graphs import graph_sizes
from replica.engine import Engine
from replica.generation import GenerationFailed
from replica.journal import Journal
from replica.metrics import Metrics
from replica.model_runner import ModelRunner, StepLost, allocate_caches
from replica.models.decoder import Decoder
from replica.request import Finish, Request
from replica.sampling_params import SamplingParams, TokenLogprobs
from replica.scheduler import Slice, Step
from tests.replica.models.paged_model import load_decoder
from tests.replica.served import (
    ENOUGH,
    GREEDY,
    NAMESPACE,
    SCARCE,
    VOCABULARY,
    Way,
    options,
    request,
    requests,
    run,
    scheduler_of,
    words,
)
from tests.tiny_models import FAMILIES, hugging_face, write_tiny

torch.set_num_threads(1)  # small shapes, and other tests beside this one


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("qwen3"), "qwen3", tokenizer=False)


@pytest.fixture(scope="module")
def model(directory: Path) -> Decoder:
    return load_decoder(directory)


WAYS = list(
    product((True, False), (7, 16, 512), (ENOUGH, SCARCE), (0, 1, 2), (False, True), (False, True), (False, True))
)


def every_pair() -> list[Way]:
    """Few ways that have each value of each field together with each value of every other one."""

    def pairs(way: tuple[object, ...]) -> set[tuple[tuple[int, object], ...]]:
        return set(combinations(enumerate(way), 2))

    ways, left = [], set().union(*map(pairs, WAYS))
    while left:
        best = max(WAYS, key=lambda way: len(pairs(way) & left))
        left -= pairs(best)
        ways.append(Way(*best))
    return ways


@pytest.fixture(scope="module")
def alone(model: Decoder) -> list[Request]:
    """Each request answered by itself, in whole prompts, without a cache: what any other way must say too."""
    answered = requests()
    for one in answered:
        run(model, [one], Way(cache=False))
    return answered


def assert_same_logprobs(ours: Sequence[TokenLogprobs | None], expected: Sequence[TokenLogprobs | None]) -> None:
    for own, other in zip(ours, expected, strict=True):
        assert own is not None
        assert other is not None
        assert [token for token, _ in own.top] == [token for token, _ in other.top]
        assert [own.chosen, *(value for _, value in own.top)] == pytest.approx(
            [other.chosen, *(value for _, value in other.top)], abs=1e-4
        )


@pytest.mark.parametrize("way", every_pair(), ids=lambda way: "-".join(map(str, astuple(way))))
def test_the_same_requests_get_the_same_answers_however_they_are_served(
    model: Decoder, alone: list[Request], way: Way
) -> None:
    asked = requests()
    order = [asked, asked[::-1], Random(1).sample(asked, len(asked))][way.order]

    scheduler = run(model, order, way)

    assert (scheduler.preemptions > 0) == (way.blocks == SCARCE)
    for one, expected in zip(asked, alone, strict=True):
        assert one.output == expected.output
        assert_same_logprobs(one.logprobs, expected.logprobs)


def test_the_ways_to_serve_cover_every_pair_of_choices() -> None:
    ways = every_pair()

    assert len(ways) < 20
    for one, other in combinations(range(len(WAYS[0])), 2):
        assert {(astuple(way)[one], astuple(way)[other]) for way in ways} == {(way[one], way[other]) for way in WAYS}


def test_the_requests_of_these_tests_differ_in_what_they_say(alone: list[Request]) -> None:
    assert len({tuple(one.output) for one in alone}) == len(alone)
    assert all(len(one.output) == 14 and len(set(one.output)) > 5 for one in alone)


@pytest.mark.parametrize(("family", "tokens"), [(family, 200 if family == "qwen3" else 24) for family in FAMILIES])
def test_greedy_answers_are_those_of_transformers(family: str, tokens: int, directory: Path, tmp_path: Path) -> None:
    """A greedy answer is right if transformers, given prompt and answer, likes each next token best."""
    at = directory if family == "qwen3" else write_tiny(tmp_path, family, tokenizer=False)
    asked = [request(words(length, length), tokens) for length in (50, 1, 33)]

    run(load_decoder(at), asked, Way(chunk=16, lookahead=True, padded=True))

    theirs = hugging_face(at)
    for one in asked:
        with torch.inference_mode():
            logits = theirs(torch.tensor([one.tokens])).logits[0]
        assert logits[one.prompt_tokens - 1 : -1].argmax(-1).tolist() == one.output


def test_an_fp8_cache_says_the_same_in_chunks_and_from_the_cache(model: Decoder) -> None:
    whole, chunked, first, second = ([request(words(60, 1), 12)] for _ in range(4))
    fp8 = {"kv_dtype": torch.float8_e4m3fn}

    run(model, whole, Way(cache=False), **fp8)
    run(model, chunked, Way(chunk=7, lookahead=True), **fp8)
    run(model, first + second, Way(chunk=16, padded=True), **fp8)

    assert second[0].cached
    assert whole[0].output == chunked[0].output == first[0].output == second[0].output


def test_only_an_fp8_cache_has_the_scales_of_its_checkpoint(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    scales = [(0.5 + layer, 2.0 + layer) for layer in range(model.config.layers)]
    monkeypatch.setattr(model, "kv_scales", scales)

    fp8 = allocate_caches(model, options(Way(), kv_dtype=torch.float8_e4m3fn))
    plain = allocate_caches(model, options(Way()))

    assert [(cache.key_scale, cache.value_scale) for cache in fp8] == scales
    assert {(cache.key_scale, cache.value_scale) for cache in plain} == {(1.0, 1.0)}


class Bench:
    """Steps by hand: a runner, and requests whose blocks nobody else has."""

    def __init__(self, model: Decoder, **changes: object) -> None:
        self.runner = ModelRunner(model, options(Way(lookahead=True), **changes))
        self.pool = BlockPool(ENOUGH, Way().block)

    def request(self, prompt: Sequence[int], sampling: SamplingParams = GREEDY) -> Request:
        one = request(prompt, 100, sampling)
        one.table = BlockTable(NAMESPACE)
        assert self.pool.grow(one.table, len(prompt) + 32)
        return one

    async def answer(self, one: Request, count: int) -> list[int]:
        """The next tokens, one step at a time."""
        start = 0
        for _ in range(count):
            end = len(one.tokens)
            sampled = await self.runner.run(Step((Slice(one, start, end - start, samples=True),)))
            one.take(sampled.tokens[0])
            start = end
        return one.output


@pytest.fixture
def bench(model: Decoder) -> Iterator[Bench]:
    bench = Bench(model)
    yield bench
    bench.runner.close()


async def test_a_step_may_be_given_while_the_one_before_is_under_way(model: Decoder, bench: Bench) -> None:
    expected = await bench.answer(bench.request(words(20, 1)), 3)
    one = bench.request(words(20, 1))
    first = bench.runner.run(Step((Slice(one, 0, 20, samples=True),)))
    second = bench.runner.run(Step((Slice(one, 20, 1, samples=True),)))

    one.take((await first).tokens[0])
    third = bench.runner.run(Step((Slice(one, 21, 1, samples=True),)))
    one.take((await second).tokens[0])
    one.take((await third).tokens[0])

    assert one.output == expected


async def test_a_token_that_only_the_device_knows_is_penalised_like_the_others(bench: Bench) -> None:
    """The penalty is a large reward, so that whatever was said last is said again."""
    one = bench.request(words(20, 1), SamplingParams(0.0, frequency_penalty=-1000.0))
    first = bench.runner.run(Step((Slice(one, 0, 20, samples=True),)))
    second = bench.runner.run(Step((Slice(one, 20, 1, samples=True),)))

    assert list((await first).tokens) == list((await second).tokens)


async def test_samples_come_in_the_order_of_the_steps_slices(bench: Bench) -> None:
    """A prompt before a decoding request, and one that does not sample yet."""
    first, other, long = (bench.request(words(20, seed)) for seed in (1, 2, 3))
    after_first = (await bench.answer(bench.request(words(20, 1)), 1))[0]
    after_other = (await bench.answer(bench.request(words(20, 2)), 2))[1]
    await bench.answer(other, 1)

    sampled = await bench.runner.run(
        Step(
            (
                Slice(first, 0, 20, samples=True),
                Slice(long, 0, 7, samples=False),
                Slice(other, 20, 1, samples=True),
            )
        )
    )

    assert list(sampled.tokens) == [after_first, after_other]


async def test_a_failed_step_is_told_by_its_awaitable_and_the_next_one_is_served(model: Decoder, bench: Bench) -> None:
    """It fails on the event loop (an unknown token), in the launching thread (a block that is not there), and because
    it needs a token of a step that failed.
    """
    expected = await bench.answer(bench.request(words(20, 1)), 3)
    unknown, lost = bench.request([VOCABULARY]), bench.request(words(20, 2))
    lost.table.blocks[1] = Block(ENOUGH)
    refused = bench.runner.run(Step((Slice(unknown, 0, 1, samples=True),)))
    failed = bench.runner.run(Step((Slice(lost, 0, 20, samples=True),)))
    follower = bench.runner.run(Step((Slice(lost, 20, 1, samples=True),)))

    with pytest.raises(ValueError, match=f"token id {VOCABULARY}"):
        await refused
    with pytest.raises(IndexError):
        await failed
    with pytest.raises(StepLost):
        await follower
    assert await bench.answer(bench.request(words(20, 1)), 3) == expected


async def test_a_closed_runner_says_so(model: Decoder) -> None:
    bench = Bench(model)
    one = bench.request(words(20, 1))
    under_way = bench.runner.run(Step((Slice(one, 0, 20, samples=True),)))
    bench.runner.close()

    assert len((await under_way).tokens) == 1
    with pytest.raises(RuntimeError, match="shutdown"):
        await bench.runner.run(Step((Slice(one, 0, 20, samples=True),)))


async def test_the_engine_goes_on_after_a_step_that_failed(model: Decoder) -> None:
    way = Way(lookahead=True)
    scheduler, runner = scheduler_of(way), ModelRunner(model, options(way))
    engine = Engine(scheduler, runner, Journal("r", 0), Metrics(scheduler, "m"))
    engine.start()
    try:
        good, bad = engine.submit([request(words(20, 1), 30)]), engine.submit([request([VOCABULARY], 5)])
        for generation in (good, bad):
            with pytest.raises(GenerationFailed, match=f"token id {VOCABULARY}"):
                async for _ in generation:
                    pass
        later = request(words(20, 1), 5)
        async for _ in engine.submit([later]):
            pass
    finally:
        await engine.stop()
        runner.close()
    assert later.finish is Finish.LENGTH


def test_decode_steps_are_padded_to_few_sizes() -> None:
    assert graph_sizes(1) == (1,)
    assert graph_sizes(6) == (1, 2, 4, 6)
    assert graph_sizes(40) == (1, 2, 4, 8, 16, 24, 32, 40)
    assert graph_sizes(43) == (1, 2, 4, 8, 16, 24, 32, 40, 43)


def test_a_closed_runner_gives_its_memory_back_at_once(model: Decoder) -> None:
    """Without waiting for circles of references to be collected: its caches are most of a GPU's memory."""
    runner = ModelRunner(model, options(Way(padded=True)))
    runner.compute(Step((Slice(request(words(5, 1), 1), 0, 5, samples=False),)))
    gone = weakref.ref(runner)
    gc.disable()
    try:
        runner.close()
        del runner
        assert gone() is None
    finally:
        gc.enable()
