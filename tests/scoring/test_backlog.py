"""A queue's progress, seen from outside: credit for what must have been done, none for standing still."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.backlog import Backlog

PACE = 0.001


def test_a_prompt_under_way_counts_for_what_is_left_of_it() -> None:
    backlog = Backlog()
    assert backlog.seconds(0, 0, PACE, 5.0) == 0.0
    assert backlog.seconds(4000, 1, PACE, 10.0) == 4.0
    assert backlog.seconds(4000, 1, PACE, 11.0) == pytest.approx(3.0)
    assert backlog.seconds(5000, 2, PACE, 12.0) == pytest.approx(3.0)  # another 1000 behind it
    assert backlog.seconds(1000, 1, PACE, 14.0) == pytest.approx(1.0)  # its first byte: the next begins
    assert backlog.seconds(1000, 1, PACE, 14.5) == pytest.approx(0.5)


def test_a_queue_that_does_not_move_does_not_look_empty() -> None:
    backlog = Backlog()
    looks = [backlog.seconds(10_000, 10, PACE, float(now)) for now in range(0, 100, 5)]
    assert looks[0] == 10.0
    assert min(looks) == pytest.approx(8.0)  # twice the mean prompt is the most that is taken to be done
    assert looks[-1] == pytest.approx(85.0)  # overdue by so much


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 100), st.floats(0, 100), st.floats(1e-6, 1)), max_size=40)
)
def test_it_is_never_negative_and_nothing_queued_is_nothing_to_wait_for(
    looks: list[tuple[int, int, float, float]],
) -> None:
    backlog, now = Backlog(), 0.0
    for queued, waiting, later, pace in looks:
        now += later
        seconds = backlog.seconds(queued, waiting, pace, now)
        assert seconds >= 0.0
        assert queued or seconds == 0.0


def test_it_is_nearer_to_the_truth_than_the_ledgers_sum() -> None:
    """A queue served in order, with prompts of very different lengths, at 80 % load."""
    random, backlog = Random(4), Backlog()
    now, free, opened = 0.0, 0.0, list[tuple[float, int]]()
    of_ledger, of_backlog = 0.0, 0.0
    for _ in range(3000):
        arrival = now + random.expovariate(0.8 / (3700 * PACE))
        for done, _tokens in [entry for entry in opened if entry[0] <= arrival]:
            opened.pop(0)
            backlog.seconds(sum(tokens for _, tokens in opened), len(opened), PACE, done)
        now = arrival
        queued = sum(tokens for _, tokens in opened)
        truth = max(free - now, 0.0)
        of_ledger += abs(queued * PACE - truth)
        of_backlog += abs(backlog.seconds(queued, len(opened), PACE, now) - truth)
        tokens = int(random.lognormvariate(7.5, 1.2)) + 1
        free = max(free, now) + tokens * PACE
        opened.append((free, tokens))
        backlog.seconds(queued + tokens, len(opened), PACE, now)
    assert of_backlog < 0.5 * of_ledger
