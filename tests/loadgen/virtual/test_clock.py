"""The simulated clock: what happens in which order."""

from __future__ import annotations

import pytest

from loadgen.virtual.clock import OUTSIDE, STEP, VirtualClock


def test_everything_happens_in_order_of_time_and_at_its_time() -> None:
    clock = VirtualClock()
    seen: list[float] = []
    for time in (3.0, 1.0, 2.0):
        clock.at(time, lambda: seen.append(clock.now))
    clock.run()
    assert seen == [1.0, 2.0, 3.0]


def test_at_one_time_the_outside_comes_before_steps_and_otherwise_the_first_comes_first() -> None:
    clock = VirtualClock()
    seen: list[str] = []
    for name, rank in (("step", STEP), ("arrival", OUTSIDE), ("second step", STEP), ("second arrival", OUTSIDE)):
        clock.at(1.0, lambda name=name: seen.append(name), rank)  # type: ignore[misc]  # mypy infers no default's type
    clock.run()
    assert seen == ["arrival", "second arrival", "step", "second step"]


def test_what_is_cancelled_does_not_happen_and_what_happens_may_bring_more() -> None:
    clock = VirtualClock()
    seen: list[float] = []
    clock.at(2.0, lambda: seen.append(-1.0)).cancel()

    def first() -> None:
        clock.at(clock.now + 1.5, lambda: seen.append(clock.now))

    clock.at(1.0, first)
    clock.run()
    assert seen == [2.5]


def test_the_past_cannot_be_changed() -> None:
    clock = VirtualClock()
    clock.at(1.0, lambda: None)
    clock.run()
    with pytest.raises(ValueError, match="already"):
        clock.at(0.5, lambda: None)
