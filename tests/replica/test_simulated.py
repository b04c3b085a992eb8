"""Simulated time follows the model, and simulated answers depend on the prompt alone."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from radix.chat import ChatTokenizer
from replica import tokenizer as bundled
from replica.blocks import BlockPool, Namespace
from replica.request import Finish, Limits, Request
from replica.scheduler import Scheduler, SchedulerLimits, Slice, Step
from replica.simulated import Book, SimulatedRunner, TimingModel, first_eos


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.load(bundled.directory())


@pytest.fixture(scope="module")
def book(tokenizer: ChatTokenizer) -> Book:
    return Book.of(bundled.corpus(), tokenizer)


def request(prompt: list[int], limits: Limits, variant: int = 0) -> Request:
    return Request(prompt, limits, Namespace("m"), variant=variant)


def decoding(context: int) -> Slice:
    return Slice(request([1] * context, Limits(9)), context - 1, 1, samples=True)


def run(runner: SimulatedRunner, requests: list[Request], limits: SchedulerLimits, blocks: int = 256) -> float:
    """Runs the requests to their ends in virtual time; returns how long it took."""
    scheduler = Scheduler(BlockPool(blocks, 16), limits)
    for one in requests:
        scheduler.add(one)
    clock = 0.0
    while not scheduler.idle:
        step = scheduler.schedule()
        clock += runner.duration(step)
        scheduler.postprocess(step, runner.sample(step))
    return clock


def test_the_default_times_are_those_of_a_large_gpu() -> None:
    timing = TimingModel()
    assert timing.duration(Step((decoding(1000),))) == pytest.approx(0.012, rel=0.02)
    assert timing.duration(Step(tuple(decoding(1000) for _ in range(64)))) == pytest.approx(0.020, rel=0.02)
    prefill = Slice(request([1] * 2048, Limits(9)), 0, 2048, samples=True)
    assert timing.duration(Step((prefill,))) == pytest.approx(0.0118 + 2048 / 8000)


def test_a_cached_prefix_saves_its_prefill_time(book: Book) -> None:
    runner = SimulatedRunner(book)
    cold, warm = (request(list(range(1600)), Limits(1)) for _ in range(2))
    limits = SchedulerLimits(max_batched_tokens=2048, max_running=1)
    together = run(runner, [cold, warm], limits)
    assert together == pytest.approx(2 * 0.0118 + 1600 / 8000 + 16 / 8000)
    assert warm.cached == 1584


def test_answers_do_not_depend_on_company_chunks_or_preemption(book: Book) -> None:
    runner = SimulatedRunner(book)

    def answers(limits: SchedulerLimits, blocks: int) -> list[list[int]]:
        requests = [request([number] * 40, Limits(60)) for number in range(6)]
        run(runner, requests, limits, blocks)
        return [one.output for one in requests]

    alone = answers(SchedulerLimits(2048, 1), 256)
    assert answers(SchedulerLimits(8, 8), 256) == alone
    assert answers(SchedulerLimits(2048, 8), 20) == alone
    assert len({tuple(answer) for answer in alone}) > 1


def test_without_a_length_an_answer_ends_by_itself_and_variants_differ(book: Book) -> None:
    runner = SimulatedRunner(book, eos=3, shortest=5, longest=40)
    limits = Limits(1000, open_ended=True, eos_ids=frozenset({3}))
    requests = [request([7, 8, 9], limits, variant) for variant in range(20)]
    run(runner, requests, SchedulerLimits(64, 32))
    lengths = {one.output_tokens for one in requests}
    assert len(lengths) > 5
    assert 5 <= min(lengths) <= max(lengths) <= 40
    assert {(one.finish, one.tokens[-1]) for one in requests} == {(Finish.STOP, 3)}


def test_ignoring_the_end_and_naming_a_length_are_obeyed(book: Book) -> None:
    runner = SimulatedRunner(book, eos=3, shortest=5, longest=6)
    ignoring = request([1], Limits(50, open_ended=True, ignore_eos=True, eos_ids=frozenset({3})))
    named = request([2], Limits(50, eos_ids=frozenset({3})))
    run(runner, [ignoring, named], SchedulerLimits(64, 32))
    assert [(one.finish, one.output_tokens) for one in (ignoring, named)] == [(Finish.LENGTH, 50)] * 2


def test_an_answer_comes_back_as_the_same_tokens_in_the_next_turn(book: Book, tokenizer: ChatTokenizer) -> None:
    runner = SimulatedRunner(book, eos=first_eos(tokenizer.eos_ids))
    total = same = 0
    for number in range(20):
        chat = [{"role": "user", "content": f"Question number {number}, please."}]
        prompt = tokenizer.encode_chat(chat)
        one = request(prompt, Limits(500, open_ended=True, eos_ids=tokenizer.eos_ids))
        run(runner, [one], SchedulerLimits(2048, 1))
        chat += [{"role": "assistant", "content": tokenizer.decode(one.output)}, {"role": "user", "content": "And?"}]
        following = tokenizer.encode_chat(chat)
        total += len(one.tokens)
        same += next(
            (at for at, pair in enumerate(zip(one.tokens, following, strict=False)) if pair[0] != pair[1]),
            len(one.tokens),
        )
    assert same / total > 0.98


async def test_steps_that_follow_each_other_keep_the_pace_of_the_model(book: Book) -> None:
    runner = SimulatedRunner(book, TimingModel(step_s=0.4, decode_s=0, context_token_s=0), speedup=100)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    ends = []
    for _ in range(10):
        assert len((await runner.run(Step((decoding(5),)))).tokens) == 1
        ends.append(loop.time() - begin)
    assert ends[-1] >= 10 * 0.004 - 0.002, "never faster than the model"
    assert all(early < late for early, late in pairwise(ends))


def test_nonsense_is_refused(book: Book, tokenizer: ChatTokenizer) -> None:
    with pytest.raises(ValueError, match="prefill rate"):
        TimingModel(prefill_rate=0)
    with pytest.raises(ValueError, match="speedup"):
        SimulatedRunner(book, speedup=0)
    with pytest.raises(ValueError, match="length"):
        SimulatedRunner(book, shortest=9, longest=8)
    with pytest.raises(ValueError, match="paragraph"):
        Book.of(" \n\n ", tokenizer)
