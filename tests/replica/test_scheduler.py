"""Whatever arrives, everything that can fit finishes with its own answer, within the budget and without starvation."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replica.blocks import BlockPool, Namespace
from replica.request import Finish, Limits, Request, State
from replica.sampling_params import SamplingParams, TokenLogprobs
from replica.scheduler import NeverFits, Scheduler, SchedulerLimits
from tests.replica.paged import Bench, answer, request


@dataclass
class Arrival:
    """A prompt of `common` shared tokens and some of its own, `after` steps behind the one before."""

    common: int
    own: list[int]
    output: int
    salt: str
    stop_ids: set[int]
    after: int
    cancelled_after: int | None

    prompt: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.prompt = [token % 5 for token in range(self.common)] + self.own

    def request(self) -> Request:
        return request(self.prompt, self.output, self.salt, self.stop_ids)

    def answer(self) -> list[int]:
        return answer(self.prompt, self.output, self.salt, self.stop_ids)


arrivals = st.lists(
    st.builds(
        Arrival,
        common=st.integers(0, 20),
        own=st.lists(st.integers(0, 4), min_size=1, max_size=12),
        output=st.integers(1, 12),
        salt=st.sampled_from(["", "", "salt"]),
        stop_ids=st.sets(st.integers(0, 4), max_size=1),  # an answer has one in every five tokens
        after=st.integers(0, 3),
        cancelled_after=st.none() | st.none() | st.integers(0, 6),
    ),
    min_size=1,
    max_size=12,
)
blocks = st.integers(11, 60)  # of 4 tokens: room for one request at least
limits = st.builds(
    lambda running, more: SchedulerLimits(max_batched_tokens=running + more, max_running=running),
    st.integers(1, 6),
    st.integers(0, 30),
)
lookaheads = st.integers(0, 1)


@settings(max_examples=160, deadline=None)
@given(arrivals, blocks, limits, lookaheads)
def test_every_request_ends_with_its_own_answer(
    work: list[Arrival], blocks: int, limits: SchedulerLimits, lookahead: int
) -> None:
    bench = Bench(BlockPool(blocks, 4), limits, lookahead)
    requests: list[Request] = []
    cancel_at: dict[int, list[Request]] = {}
    for arrival in work:
        for _ in range(arrival.after):
            bench.step()
            for doomed in cancel_at.pop(bench.steps, ()):
                bench.scheduler.cancel(doomed)
        requests.append(arrival.request())
        bench.scheduler.add(requests[-1])
        if arrival.cancelled_after is not None:
            cancel_at.setdefault(bench.steps + arrival.cancelled_after + 1, []).append(requests[-1])
    while not bench.idle:
        bench.step()
        for doomed in cancel_at.pop(bench.steps, ()):
            bench.scheduler.cancel(doomed)
        assert bench.steps < 5000, "the scheduler does not come to an end"
    for arrival, done in zip(work, requests, strict=True):
        expected = arrival.answer()
        assert done.state is State.FINISHED
        assert done.pending == 0
        if done.finish is Finish.ABORT:
            assert arrival.cancelled_after is not None
            assert done.output == expected[: done.output_tokens]
        else:
            assert done.output == expected
            assert done.finish is (Finish.STOP if expected[-1] in arrival.stop_ids else Finish.LENGTH)
    assert bench.pool.referenced == 0


@settings(max_examples=50, deadline=None)
@given(arrivals, blocks, limits)
def test_without_sharing_everything_is_computed_and_nothing_is_said(
    work: list[Arrival], blocks: int, limits: SchedulerLimits
) -> None:
    bench = Bench(BlockPool(blocks, 4, sharing=False), limits, lookahead=1)
    requests = [arrival.request() for arrival in work]
    for one in requests:
        bench.scheduler.add(one)
    bench.until_idle()
    assert [one.output for one in requests] == [arrival.answer() for arrival in work]
    assert {one.cached for one in requests} == {0}
    assert bench.pool.allocatable == bench.pool.total
    assert not bench.replay.parents


@settings(max_examples=30, deadline=None)
@given(arrivals, blocks, limits, lookaheads)
def test_requests_start_in_order_of_arrival(
    work: list[Arrival], blocks: int, limits: SchedulerLimits, lookahead: int
) -> None:
    bench = Bench(BlockPool(blocks, 4), limits, lookahead)
    requests = [arrival.request() for arrival in work]
    for one in requests:
        bench.scheduler.add(one)
    while not bench.idle:
        bench.step()
        order = [*bench.scheduler.running, *bench.scheduler.waiting]
        assert order == [one for one in requests if one.state is not State.FINISHED]


def test_a_later_prompt_finds_prompt_and_answer_of_an_earlier_one() -> None:
    bench = Bench(BlockPool(32, 4), SchedulerLimits(64, 8))
    first = request(range(10), 7)
    bench.scheduler.add(first)
    bench.until_idle()
    follow_up = request([*first.tokens, 1, 2, 3], 1)
    bench.scheduler.add(follow_up)
    bench.until_idle()
    # 10 prompt tokens and 6 computed output tokens fill four blocks; the last output token was never computed.
    assert (first.cached, follow_up.cached) == (0, 16)


def test_the_same_prompt_again_leaves_one_token_to_compute() -> None:
    bench = Bench(BlockPool(32, 4), SchedulerLimits(64, 8))
    for expected in (0, 4):
        again = request(range(8), 1)
        bench.scheduler.add(again)
        bench.until_idle()
        assert again.cached == expected


def test_decodes_go_on_while_a_long_prompt_is_prefilled_in_chunks() -> None:
    bench = Bench(BlockPool(64, 4), SchedulerLimits(max_batched_tokens=8, max_running=4))
    short, long = request([1], 20), request(range(40), 1)
    bench.scheduler.add(short)
    bench.step()
    bench.scheduler.add(long)
    while long.output_tokens == 0:
        before = short.output_tokens
        bench.step()
        assert short.output_tokens == before + 1
    assert bench.steps == 1 + 6, "40 tokens, at most 7 a step beside one decode"


def test_the_youngest_is_preempted_and_still_answers() -> None:
    bench = Bench(BlockPool(6, 4), SchedulerLimits(16, 4))
    requests = [request([number] * 4, 16) for number in range(2)]
    for one in requests:
        bench.scheduler.add(one)
    bench.until_idle()
    assert requests[0].preemptions == 0
    assert requests[1].preemptions > 0
    assert [one.output for one in requests] == [answer([number] * 4, 16) for number in range(2)]


def test_nobody_is_started_only_to_be_preempted() -> None:
    bench = Bench(BlockPool(6, 4), SchedulerLimits(64, 8))
    requests = [request([number] * 12, 13) for number in range(2)]  # three blocks at first, six at the end
    for one in requests:
        bench.scheduler.add(one)
    bench.until_idle()
    assert bench.scheduler.preemptions == 0


def test_what_can_never_fit_is_refused_and_the_rest_goes_on() -> None:
    bench = Bench(BlockPool(4, 4), SchedulerLimits(16, 4))
    with pytest.raises(NeverFits, match="need 5 KV blocks of 4 tokens, but this replica has 4"):
        bench.scheduler.add(request(range(10), 8))
    exact = request(range(10), 7)
    bench.scheduler.add(exact)
    bench.until_idle()
    assert exact.output_tokens == 7


def test_a_cancelled_request_leaves_at_the_next_step_and_its_blocks_stay() -> None:
    bench = Bench(BlockPool(16, 4), SchedulerLimits(16, 1))
    running, waiting = request(range(9), 20), request([1, 2], 20)
    for one in (running, waiting):
        bench.scheduler.add(one)
    bench.step()
    for one in (running, waiting, running):
        bench.scheduler.cancel(one)
    assert not bench.scheduler.schedule().slices
    assert bench.scheduler.idle
    assert (running.finish, waiting.finish) == (Finish.ABORT, Finish.ABORT)
    assert bench.pool.referenced == 0
    assert bench.pool.resident == 2


def test_a_failed_step_ends_what_ran_and_leaves_what_waits() -> None:
    bench = Bench(BlockPool(16, 4), SchedulerLimits(16, 1))
    running, waiting = request(range(9), 3), request([1, 2], 3)
    for one in (running, waiting):
        bench.scheduler.add(one)
    assert bench.scheduler.schedule().slices
    assert bench.scheduler.fail_running() == [running]
    assert running.finish is Finish.ERROR
    bench.pool.clear()
    bench.until_idle()
    assert waiting.output == answer([1, 2], 3)


def test_a_runner_that_returns_too_few_tokens_is_found_out() -> None:
    bench = Bench(BlockPool(16, 4), SchedulerLimits(16, 1))
    bench.scheduler.add(request([1, 2], 3))
    with pytest.raises(ValueError, match="returned 0 tokens and 0 logprobs for a step that samples 1"):
        bench.scheduler.postprocess(bench.scheduler.schedule(), [])


def test_looking_ahead_a_request_takes_one_step_for_each_token() -> None:
    bench = Bench(BlockPool(16, 4), SchedulerLimits(16, 1), lookahead=1)
    bench.scheduler.add(request([1, 2], 6))
    bench.until_idle()
    # One for each token; the prompt's brings the first. The last is scheduled before anyone knows the last but one.
    assert bench.steps == 6 + 1, "and one that schedules nothing and waits for the last token"


def test_looking_ahead_nothing_is_computed_beyond_the_length_that_was_asked_for() -> None:
    bench = Bench(BlockPool(3, 4), SchedulerLimits(16, 1), lookahead=1)
    exact = request(range(10), 3)  # 12 tokens have KV: three blocks, all there are
    bench.scheduler.add(exact)
    bench.until_idle()
    assert exact.output == answer(range(10), 3)
    assert bench.runner.computed == 12


def test_what_was_computed_behind_an_unforeseen_end_is_dropped() -> None:
    prompt = [1, 2, 3]
    full = answer(prompt, 12)
    last = full[4]
    stopped = request(prompt, 12, stop_ids={last})
    expected = full[: full.index(last) + 1]
    bench = Bench(BlockPool(16, 4), SchedulerLimits(16, 1), lookahead=1)
    bench.scheduler.add(stopped)
    bench.until_idle()
    assert (stopped.output, stopped.finish) == (expected, Finish.STOP)
    assert bench.runner.computed == 3 + len(expected), "the step behind the end was under way"
    assert bench.pool.resident == (3 + len(expected) - 1) // 4, "but its KV is nobody's"


def preempted_with_a_sample_under_way() -> tuple[Bench, Request, Request]:
    """Two requests, of which the younger was just preempted while its next token is being computed."""
    bench = Bench(BlockPool(6, 4), SchedulerLimits(16, 4), lookahead=1)
    older, younger = request([1] * 4, 16), request([2] * 4, 16)
    for one in (older, younger):
        bench.scheduler.add(one)
    while not younger.preemptions:
        step = bench.scheduler.schedule()
        bench.under_way.append((step, bench.runner.compute(step)))
        if len(bench.under_way) > 1 and not younger.preemptions:
            bench.scheduler.postprocess(*bench.under_way.popleft())
    assert (younger.state, younger.pending) == (State.WAITING, 1)
    return bench, older, younger


def test_a_token_sampled_before_a_preemption_counts() -> None:
    bench, older, younger = preempted_with_a_sample_under_way()
    before = younger.output_tokens
    assert younger in bench.scheduler.postprocess(*bench.under_way.popleft())
    assert (younger.output_tokens, younger.pending, younger.computed) == (before + 1, 0, 0)
    bench.until_idle()
    assert [older.output, younger.output] == [answer([1] * 4, 16), answer([2] * 4, 16)]


def test_a_preempted_request_does_not_start_over_before_its_token_is_known() -> None:
    bench, older, younger = preempted_with_a_sample_under_way()
    bench.scheduler.cancel(older)
    assert not bench.scheduler.schedule().slices, "there is room, but the request does not know all its tokens"
    bench.until_idle()
    assert younger.output == answer([2] * 4, 16)


def test_the_last_token_may_come_after_a_preemption() -> None:
    bench, _, younger = preempted_with_a_sample_under_way()
    step, tokens = bench.under_way[0]
    younger.limits = Limits(16, stop_ids=frozenset(range(5)))
    bench.scheduler.postprocess(step, tokens)
    assert (younger.state, younger.finish) == (State.FINISHED, Finish.STOP)
    assert younger not in bench.scheduler.waiting


def test_a_sample_lost_with_a_failed_step_is_taken_anew_by_who_waits() -> None:
    bench, older, younger = preempted_with_a_sample_under_way()
    bench.under_way.clear()
    assert bench.scheduler.fail_running() == [older]
    bench.pool.clear()
    bench.until_idle()
    assert younger.output == answer([2] * 4, 16)


def test_logprobs_are_kept_for_those_who_want_them() -> None:
    scheduler = Scheduler(BlockPool(16, 4))
    wanting = Request([1], Limits(2), Namespace("m"), sampling=SamplingParams(logprobs=0))
    plain = request([2], 2)
    for one in (wanting, plain):
        scheduler.add(one)
    likely = [TokenLogprobs(-1.0, ()), TokenLogprobs(-2.0, ())]
    scheduler.postprocess(scheduler.schedule(), [3, 4], [likely[0], None])
    scheduler.postprocess(scheduler.schedule(), [3, 4], [likely[1], None])
    assert (wanting.logprobs, plain.logprobs) == (likely, [])


def test_a_runner_that_leaves_out_logprobs_is_found_out() -> None:
    scheduler = Scheduler(BlockPool(16, 4))
    scheduler.add(Request([1], Limits(2), Namespace("m"), sampling=SamplingParams(logprobs=0)))
    step = scheduler.schedule()
    with pytest.raises(ValueError, match="returned 1 tokens and 2 logprobs"):
        scheduler.postprocess(step, [3], [None, None])
    with pytest.raises(ValueError, match="no logprobs"):
        scheduler.postprocess(step, [3])


def test_limits_that_could_stall_are_refused() -> None:
    with pytest.raises(ValueError, match="at least max_running"):
        SchedulerLimits(max_batched_tokens=7, max_running=8)
