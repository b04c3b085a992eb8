"""A queue's progress, seen from outside: credit for what must have been done, none for standing still."""

from __future__ import annotations

from collections import deque
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.backlog import wait_s
from scoring.learned import Learned
from scoring.ledger import Booking, ReplicaLoad

PACE = 0.001


def replica() -> ReplicaLoad:
    return ReplicaLoad("r", learned=Learned(PACE))


def test_a_prompt_under_way_counts_for_what_is_left_of_it() -> None:
    load = replica()
    assert load.wait_s(5.0) == 0.0
    first = load.book(4000, 4000, 10.0)
    assert load.wait_s(10.0) == pytest.approx(4.0)
    assert load.wait_s(11.0) == pytest.approx(3.0)
    load.book(1000, 1000, 12.0)  # another behind it
    assert load.wait_s(12.0) == pytest.approx(3.0)
    first.first_byte(14.0)  # the next begins
    assert load.wait_s(14.0) == pytest.approx(1.0)
    assert load.wait_s(14.5) == pytest.approx(0.5)


def test_a_queue_that_does_not_move_does_not_look_empty() -> None:
    looks = [wait_s(10.0, 10, float(now)) for now in range(0, 100, 5)]
    assert looks[0] == 10.0
    assert min(looks) == pytest.approx(8.0)  # twice the mean prompt is the most that is taken to be done
    assert looks[-1] == pytest.approx(85.0)  # overdue by so much


@given(st.floats(0, 1e6), st.integers(0, 1000), st.floats(-10, 1e6))
def test_it_is_never_negative_and_nothing_queued_is_nothing_to_wait_for(
    expected: float, waiting: int, elapsed: float
) -> None:
    seconds = wait_s(expected, waiting, elapsed)
    assert seconds >= 0.0
    assert expected or seconds == 0.0


def test_it_is_nearer_to_the_truth_than_the_ledgers_sum() -> None:
    """A queue served in order, with prompts of very different lengths, at 80 % load."""
    random, load = Random(4), replica()
    now, free, opened = 0.0, 0.0, deque[tuple[float, Booking]]()
    of_sum, of_wait = 0.0, 0.0
    for _ in range(3000):
        now += random.expovariate(0.8 / (3700 * PACE))
        while opened and opened[0][0] <= now:
            done, booking = opened.popleft()
            booking.first_byte(done)
        truth = max(free - now, 0.0)
        of_sum += abs(load.queued_tokens * PACE - truth)
        of_wait += abs(load.wait_s(now) - truth)
        tokens = int(random.lognormvariate(7.5, 1.2)) + 1
        free = max(free, now) + tokens * PACE
        opened.append((free, load.book(tokens, tokens, now)))
    assert of_wait < 0.5 * of_sum


def test_what_is_learned_from_is_the_work_that_was_left_when_it_came() -> None:
    load, lessons = replica(), []
    load.taught = lambda _, first: lessons.append(first)
    first = load.book(5000, 4000, 10.0)
    second = load.book(1000, 1000, 11.0)
    first.first_byte(14.0)
    second.first_byte(15.0)
    second.first_byte(99.0)
    assert [(lesson.work_tokens, lesson.ttft_s) for lesson in lessons] == [(4000, 4.0), (4000, 4.0)]


def test_an_answer_that_is_not_streamed_leaves_the_queue_when_that_was_to_be_expected() -> None:
    load, lessons = replica(), []
    load.taught = lambda _, first: lessons.append(first)
    silent = load.book(4000, 4000, 10.0, streamed=False)
    load.settle(13.9)
    assert (load.waiting, load.decoding, load.queued_tokens) == (1, 0, 4000)
    load.settle(14.0)
    assert (load.waiting, load.decoding, load.queued_tokens) == (0, 1, 0)
    silent.first_byte(30.0)
    silent.release(30.0)
    assert (load.running, load.context_tokens, load.served) == (0, 0, 1)
    gone = load.book(10, 10, 40.0, streamed=False)
    gone.release(40.0)
    load.settle(40.0)
    assert not load.silent
    assert not lessons


def test_a_queue_of_answers_that_are_not_streamed_goes_on_while_nobody_looks() -> None:
    load = replica()
    load.book(4000, 4000, 10.0, streamed=False)
    load.book(1000, 1000, 11.0, streamed=False)
    load.settle(14.5)
    assert (load.waiting, load.decoding) == (1, 1)
    assert load.wait_s(14.5) == pytest.approx(0.5)


def test_a_request_with_nothing_to_compute_is_open_but_no_part_of_the_queue() -> None:
    load, lessons = replica(), []
    load.taught = lambda _, first: lessons.append(first)
    load.book(0, 0)
    assert load.waiting == 1
    assert load.wait_s(1e6) == 0.0
    load.book(4000, 4000, 10.0)
    load.book(0, 0).first_byte(12.0)
    load.book(0, 0).release(12.5)
    assert load.wait_s(13.0) == pytest.approx(1.0)
    assert not lessons


def test_what_the_replica_really_found_cached_corrects_the_lesson() -> None:
    load, lessons = replica(), []
    load.taught = lambda _, first: lessons.append(first)
    load.book(5000, 5000, 10.0).first_byte(11.0, cached_tokens=4000)
    assert [lesson.work_tokens for lesson in lessons] == [1000]


def test_and_that_of_whoever_waited_behind_it() -> None:
    load, lessons = replica(), []
    load.taught = lambda _, first: lessons.append(first)
    hit = load.book(5000, 100, 10.0)  # whose blocks are gone when its turn comes
    behind = load.book(1000, 1000, 10.0)
    hit.first_byte(15.0, cached_tokens=0)
    later = load.book(500, 500, 15.0)
    behind.first_byte(16.0, cached_tokens=0)
    later.first_byte(16.5, cached_tokens=0)
    assert [(lesson.work_tokens, lesson.ttft_s) for lesson in lessons] == [(5000, 5.0), (6000, 6.0), (1500, 1.5)]


def test_a_first_byte_that_was_not_seen_in_time_corrects_nobodys_lesson() -> None:
    load, lessons = replica(), []
    load.taught = lambda _, first: lessons.append(first)
    whole = load.book(50_000, 50_000, 0.0, streamed=False)
    behind = load.book(8000, 8000, 2.0)
    whole.first_byte(2.5, teaches=False, cached_tokens=49_000)
    behind.first_byte(10.0)
    assert [lesson.work_tokens for lesson in lessons] == [56_000]


def test_a_replica_that_found_more_than_the_prompt_has_still_computed_a_token() -> None:
    load, lessons = replica(), []
    load.taught = lambda _, first: lessons.append(first)
    load.book(1000, 300, 0.0).first_byte(1.0, cached_tokens=1500)
    assert [lesson.work_tokens for lesson in lessons] == [1]


def test_the_work_before_a_request_is_no_more_than_what_is_queued_however_late_that_is() -> None:
    load, lessons = replica(), []
    load.taught = lambda _, first: lessons.append(first)
    load.book(1000, 1000, 0.0)
    load.book(500, 500, 60.0).first_byte(61.0)
    assert [lesson.work_tokens for lesson in lessons] == [1500]


def test_clients_that_give_up_are_no_progress() -> None:
    load = replica()
    bookings = [load.book(1000, 1000, 0.0) for _ in range(3)]
    for booking in bookings[:2]:
        booking.release(50.0)
    assert load.wait_s(60.0) == pytest.approx(59.0)
