"""How long answers take is learned by what requests allow, and followed when it changes."""

from __future__ import annotations

from random import Random

import pytest

from scoring.answers import PRIOR_TOKEN_S, AnswerTimes


def test_before_the_first_answer_the_limit_is_all_there_is() -> None:
    assert AnswerTimes().predict(200) == pytest.approx(200 * PRIOR_TOKEN_S)


@pytest.mark.parametrize("seed", range(5))
def test_the_median_is_learned_for_each_size_of_limit_whatever_the_tail(seed: int) -> None:
    times, random = AnswerTimes(), Random(seed)
    for _ in range(500):
        times.observe(256, random.lognormvariate(1.0, 1.0))  # median e
        times.observe(4096, random.lognormvariate(3.0, 1.0) * (1000 if random.random() < 0.1 else 1))
    assert 1.6 < times.predict(300) < 4.5  # 256 to 511 are one size; the median is 2.7
    assert 12 < times.predict(4096) < 40  # 20, without those that are off; the mean is above 3000
    assert times.predict(100) == pytest.approx(100 * PRIOR_TOKEN_S)


def test_a_workload_that_changes_is_followed() -> None:
    times = AnswerTimes()
    for seconds in (1.0, 10.0):
        for _ in range(200):
            times.observe(1024, seconds)
        assert times.predict(1024) == pytest.approx(seconds, rel=0.05)


def test_answers_of_no_time_are_no_trouble() -> None:
    times = AnswerTimes()
    for seconds in (0.0, -1.0, 0.0, 5.0):
        times.observe(1, seconds)
        assert 0 < times.predict(1) < 5.0
