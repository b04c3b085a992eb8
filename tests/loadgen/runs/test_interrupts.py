"""Signals while something is measured: the first ends the measuring, another one everything, and none is lost."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from loadgen.runs.interrupts import NUMBERS, Interrupted, Interrupts


async def nothing() -> None:
    return


def measured() -> Interrupts:
    """Whose run is over. Still to be left."""
    interrupts = Interrupts().__enter__()
    interrupts.run(nothing())
    return interrupts


@pytest.mark.parametrize("number", NUMBERS)
def test_before_anything_runs_a_signal_ends_the_command(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, Interrupts():
        signal.raise_signal(number)
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_stops_what_is_measured_and_its_result_is_kept(number: signal.Signals) -> None:
    async def measuring() -> str:
        stopped: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        interrupts.first(stopped.set_result)
        signal.raise_signal(number)
        return await stopped

    with Interrupts() as interrupts:
        assert interrupts.run(measuring()) == number.name
        assert interrupts.number == number


def test_another_signal_cancels_it() -> None:
    async def measuring() -> None:
        interrupts.first(lambda name: signal.raise_signal(signal.SIGTERM))
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    with Interrupts() as interrupts, pytest.raises(SystemExit) as ended:
        interrupts.run(measuring())
    assert ended.value.code == 128 + signal.SIGINT


def test_what_can_not_be_stopped_yet_is_cancelled_and_cleans_up() -> None:
    cleaned = []

    async def measuring() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    with Interrupts() as interrupts, pytest.raises(SystemExit) as ended:
        interrupts.run(measuring())
    assert ended.value.code == 128 + signal.SIGTERM
    assert cleaned


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_that_comes_while_the_loop_is_kept_waiting_is_heard_there_and_then(number: signal.Signals) -> None:
    async def measuring() -> None:
        signal.raise_signal(number)
        deadline = time.monotonic() + 10
        while interrupts.number is None and time.monotonic() < deadline:
            pass  # as whoever works out something long: it looks, and needs no turn of the loop for it
        with pytest.raises(Interrupted):
            interrupts.check()

    with Interrupts() as interrupts:
        interrupts.first(lambda name: None)
        interrupts.run(measuring())


@pytest.mark.parametrize("number", NUMBERS)
def test_after_the_run_the_first_signal_ends_what_can_be_left_out(number: signal.Signals) -> None:
    with measured() as interrupts:
        interrupts.check()
        signal.raise_signal(number)
        with pytest.raises(Interrupted):
            interrupts.check()
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGINT)
        assert ended.value.code == 128 + number
