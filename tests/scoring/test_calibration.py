"""Rates are learned from first bytes, whatever some of the receipts say, and follow a replica that changes."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.calibration import Calibration, weighted_median
from scoring.learned import Learned
from scoring.ledger import ReplicaLoad

PACE = 1 / 5000  # seconds a token; the prior says 1 / 8000


def feed(
    calibration: Calibration,
    count: int,
    *,
    name: str = "r",
    pace: float = PACE,
    slowdown: float = 0.0,
    overhead_s: float = 0.0,
    noise: float = 0.2,
    outliers: float = 0.0,
    streams: int = 0,
    random: Random | None = None,
) -> None:
    """Receipts of a replica that is as told; `outliers` of them are wrong by a factor of 30, up or down."""
    random = random or Random(1)
    for _ in range(count):
        work, decoding = int(random.lognormvariate(7.5, 1.2)) + 1, random.randint(0, streams)
        ttft = overhead_s + work * pace * (1 + slowdown * decoding) * math.exp(random.gauss(0, noise))
        if random.random() < outliers:
            ttft *= random.choice([30, 1 / 30])
        calibration.observe(name, work, decoding, ttft)


def pace_of(calibration: Calibration, name: str = "r") -> float:
    return calibration.of(name).seconds_per_token


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("outliers", [0.0, 0.3])
def test_the_pace_is_learned_though_many_receipts_are_far_off(outliers: float, seed: int) -> None:
    calibration = Calibration()
    feed(calibration, 100, outliers=outliers, random=Random(seed))
    assert pace_of(calibration) == pytest.approx(PACE, rel=0.2)


def test_one_wrong_receipt_changes_little_at_any_time() -> None:
    for known in range(60):
        calibration = Calibration()
        feed(calibration, known, noise=0.0)
        calibration.observe("r", 2000, 0, 500.0)
        assert 0.99 / 8000 <= pace_of(calibration) <= 1.01 * PACE  # from the prior to the truth


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("factor", [5.0, 0.2])
def test_a_replica_that_changes_fivefold_is_followed_within_twenty_receipts(factor: float, seed: int) -> None:
    calibration, random = Calibration(), Random(seed)
    feed(calibration, 200, random=random)
    feed(calibration, 20, pace=PACE * factor, random=random)
    assert pace_of(calibration) == pytest.approx(PACE * factor, rel=0.3)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_followed_there_and_back_though_one_receipt_in_ten_is_wrong(seed: int) -> None:
    calibration, random = Calibration(), Random(seed)
    for factor in (1.0, 5.0, 1.0, 5.0):
        feed(calibration, 60, pace=PACE * factor, outliers=0.1, random=random)
        assert pace_of(calibration) == pytest.approx(PACE * factor, rel=0.3)


def test_mixed_hardware_is_learned_apart_and_a_newcomer_is_taken_for_the_median() -> None:
    calibration = Calibration()
    for number, factor in enumerate((1.0, 1.0, 2.0)):
        feed(calibration, 80, name=f"r{number}", pace=PACE * factor)
    assert pace_of(calibration, "r0") == pytest.approx(PACE, rel=0.2)
    assert pace_of(calibration, "r2") == pytest.approx(2 * PACE, rel=0.2)
    assert pace_of(calibration, "new") == pytest.approx(PACE, rel=0.2)
    feed(calibration, 40, name="new", pace=4 * PACE)
    assert pace_of(calibration, "new") == pytest.approx(4 * PACE, rel=0.25)
    calibration.forget("new")
    assert pace_of(calibration, "new") == pytest.approx(PACE, rel=0.2)


def test_nothing_is_known_at_first() -> None:
    prior = Learned(1 / 1000, 0.02, 0.01)
    calibration = Calibration(prior)
    assert calibration.of("r") == prior
    assert prior.ttft_s(500, 10) == pytest.approx(0.01 + 0.5 * 1.2)
    for work, decoding, ttft in ((0, 0, 1.0), (10, -1, 1.0), (10, 0, 0.0), (10, 0, math.inf), (10, 0, math.nan)):
        calibration.observe("r", work, decoding, ttft)
    assert calibration.of("r") == prior


@pytest.mark.parametrize("seed", range(4))
def test_what_decoding_streams_cost_prefill_is_learned(seed: int) -> None:
    calibration = Calibration()
    feed(calibration, 200, slowdown=0.05, streams=40, random=Random(seed))
    learned = calibration.of("r")
    assert learned.slowdown == pytest.approx(0.05, rel=0.6)
    assert learned.ttft_s(2000, 20) == pytest.approx(2000 * PACE * 2, rel=0.25)
    assert learned.ttft_s(2000, 40) == pytest.approx(2000 * PACE * 3, rel=0.25)


@pytest.mark.parametrize("seed", range(4))
def test_the_constant_part_is_learned(seed: int) -> None:
    calibration = Calibration()
    feed(calibration, 200, overhead_s=0.08, noise=0.1, random=Random(seed))
    learned = calibration.of("r")
    assert learned.overhead_s == pytest.approx(0.08, abs=0.03)
    assert learned.seconds_per_token == pytest.approx(PACE, rel=0.15)


@pytest.mark.parametrize("seed", range(4))
def test_a_slow_start_passes_neither_for_overhead_nor_for_speed_for_long(seed: int) -> None:
    """A replica that compiles, or waits for something else, while it answers its first, short requests."""
    random, calibration = Random(seed), Calibration()
    for _ in range(8):
        calibration.observe("r", random.randint(10, 200), 0, random.uniform(5.0, 8.0))
    feed(calibration, 100, random=random)
    assert pace_of(calibration) == pytest.approx(PACE, rel=0.3)
    assert calibration.of("r").overhead_s < 0.2


@pytest.mark.parametrize("spread", [0.02, 0.2, 0.4])
def test_nor_where_all_that_comes_after_it_is_alike(spread: float) -> None:
    random, calibration = Random(1), Calibration()
    for _ in range(8):
        calibration.observe("r", random.randint(10, 200), 0, random.uniform(5.0, 8.0))
    for _ in range(300):
        work = int(2000 * random.uniform(1 - spread, 1 + spread))
        calibration.observe("r", work, 0, work * PACE * math.exp(random.gauss(0, 0.01)))
    assert pace_of(calibration) == pytest.approx(PACE, rel=0.15)


@pytest.mark.parametrize("busy", [2, 20])
@pytest.mark.parametrize("seed", range(20))
def test_nor_for_harm_that_decoding_streams_do(seed: int, busy: int) -> None:
    random, calibration = Random(seed), Calibration()
    for _ in range(random.randint(8, 40)):
        calibration.observe("r", random.randint(10, 200), random.randint(0, 12), random.uniform(1.0, 8.0))
    for streams, count in ((20, random.randint(0, 24)), (busy, 300)):
        feed(calibration, count, streams=streams, slowdown=0.02, random=random)
    learned = calibration.of("r")
    assert learned.work_s(2000, 0) == pytest.approx(2000 * PACE, rel=0.5)
    assert learned.work_s(2000, 8) == pytest.approx(2000 * PACE * 1.16, rel=0.5)


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0.0, 1e3)), min_size=1, max_size=100))
def test_no_overhead_is_longer_than_all_that_was_seen(receipts: list[tuple[int, float]]) -> None:
    calibration = Calibration()
    for work, wait_s in receipts:
        calibration.observe("r", work, 0, wait_s + work * PACE)
    assert calibration.of("r").overhead_s <= max(wait_s + work * PACE for work, wait_s in receipts[-48:])


def test_where_all_work_is_alike_the_expectation_is_right_all_the_same() -> None:
    calibration, random = Calibration(), Random(2)
    for _ in range(500):
        calibration.observe("r", 1000, 0, 0.25 * math.exp(random.gauss(0, 0.2)))
    assert calibration.of("r").ttft_s(1000) == pytest.approx(0.25, rel=0.15)


@pytest.mark.parametrize("load", [0.3, 0.8, 0.95])
def test_the_pace_of_a_queue_is_learned_from_what_the_ledger_sees_of_it(load: float) -> None:
    # Served in order, under Poisson arrivals. To the ledger a prompt counts in full until its first byte.
    calibration, random = Calibration(), Random(1)
    now, free, opened = 0.0, 0.0, list[tuple[float, int]]()
    for number in range(400):
        now += random.expovariate(load / (3700 * PACE))
        tokens = int(random.lognormvariate(7.5, 1.2)) + 1
        opened = [(done, queued) for done, queued in opened if done > now]
        work = tokens + sum(queued for _, queued in opened)
        free = max(free, now) + tokens * PACE
        opened.append((free, tokens))
        calibration.observe("r", work, 0, free - now)
        assert number < 30 or 0.6 * PACE < pace_of(calibration) < 1.1 * PACE


@given(
    st.lists(
        st.tuples(st.integers(-5, 10**9), st.integers(-5, 10**4), st.floats(allow_nan=True)), min_size=1, max_size=120
    )
)
def test_whatever_comes_rates_stay_usable(receipts: list[tuple[int, int, float]]) -> None:
    calibration = Calibration()
    for work, decoding, ttft in receipts:
        calibration.observe("r", work, decoding, ttft)
        learned = calibration.of("r")
        assert 1e-7 <= learned.seconds_per_token <= 1.0
        assert 0.0 <= learned.slowdown < math.inf
        assert 0.0 <= learned.overhead_s < math.inf


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(0.01, 100.0)), min_size=1, max_size=30))
def test_the_weighted_median_has_half_the_weight_on_either_side(values: list[tuple[float, float]]) -> None:
    found = weighted_median(values)
    total = sum(weight for _, weight in values)
    assert found in [value for value, _ in values]
    assert sum(weight for value, weight in values if value < found) <= total / 2 + 1e-9
    assert sum(weight for value, weight in values if value > found) <= total / 2 + 1e-9


def taught(calibration: Calibration, load: ReplicaLoad, pace: float, random: Random, now: float) -> None:
    """One request, from its booking to its first byte, on an idle replica of that pace."""
    tokens = int(random.lognormvariate(7.5, 1.2)) + 1
    booking = load.book(tokens, tokens, now)
    end = now + tokens * pace * math.exp(random.gauss(0, 0.1))
    booking.first_byte(end)
    booking.release(end)


def test_equal_replicas_have_equal_rates_and_a_slower_one_its_own() -> None:
    calibration, random = Calibration(), Random(5)
    loads = [ReplicaLoad(f"r{number}") for number in range(4)]
    for load in loads:
        calibration.attach(load)
    now = 0.0
    for _ in range(100):
        for load in loads:
            taught(calibration, load, PACE * (2 if load is loads[3] else 1), random, now)
            now += 100.0
    paces = [load.learned.seconds_per_token for load in loads]
    assert paces[0] == paces[1] == paces[2] == pytest.approx(PACE, rel=0.1)
    assert paces[3] == pytest.approx(2 * PACE, rel=0.2)
    newcomer = ReplicaLoad("new")
    calibration.attach(newcomer)
    assert newcomer.learned.seconds_per_token == pytest.approx(PACE, rel=0.2)
    calibration.attach(again := ReplicaLoad("r3"))
    assert again.learned.seconds_per_token == pytest.approx(PACE, rel=0.2)  # another incarnation
    taught(calibration, loads[3], 50 * PACE, random, now)  # late word of the old one
    calibration.detach(loads[3])
    taught(calibration, again, PACE, random, now + 100.0)
    assert again.learned.receipts == 1
