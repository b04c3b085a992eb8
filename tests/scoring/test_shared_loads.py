"""Whatever happens to the messages between routers, each of them soon sees what all of them have booked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.ledger import Booking, ReplicaLoad
from scoring.shared_loads import MAX_TOTALS, MAX_UNKNOWN, OpenTotals, SharedLoads, Update

REPLICAS = ("r0", "r1")
ROUTERS = 3

Sums = tuple[int, int, int, int]


def sums(load: ReplicaLoad) -> Sums:
    return load.queued_tokens, load.context_tokens, load.waiting, load.decoding


def pair(*names: str) -> tuple[SharedLoads, SharedLoads]:
    """Two routers in front of the same replicas."""
    routers = SharedLoads("a"), SharedLoads("b")
    for shared in routers:
        for name in names:
            shared.add(ReplicaLoad(name))
        shared.updates()
    return routers


@dataclass
class Router:
    """One router; `mirror` books just what it books, and is shared with nobody."""

    shared: SharedLoads
    loads: dict[str, ReplicaLoad] = field(default_factory=dict)
    mirror: dict[str, ReplicaLoad] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    bookings: list[tuple[Booking, Booking]] = field(default_factory=list)

    def meet(self, name: str, epoch: int) -> None:
        """That incarnation joined."""
        self.loads[name], self.mirror[name], self.epochs[name] = ReplicaLoad(name), ReplicaLoad(name), epoch
        self.shared.add(self.loads[name], epoch)

    def part(self, name: str) -> None:
        """The replica left."""
        if name in self.loads:
            self.shared.forget(self.loads.pop(name))
            del self.epochs[name]

    def book(self, name: str, prompt: int, uncached: int) -> None:
        if name in self.loads:
            booked = self.loads[name].book(prompt, uncached), self.mirror[name].book(prompt, uncached)
            self.bookings.append(booked)

    def step(self, index: int, step: str) -> None:
        for booking in self.bookings[index] if index < len(self.bookings) else ():
            getattr(booking, step)()


def true_sums(routers: list[Router], name: str, epoch: int) -> Sums:
    own = [sums(router.mirror[name]) for router in routers if router.epochs.get(name) == epoch]
    queued, context, waiting, decoding = (sum(column) for column in zip(*own, strict=True))
    return queued, context, waiting, decoding


def check(routers: list[Router]) -> None:
    """Every sum is the true one."""
    for router in routers:
        for name, load in router.loads.items():
            assert sums(load) == true_sums(routers, name, router.epochs[name])


who = st.integers(0, ROUTERS - 1)
which = st.sampled_from(REPLICAS)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("book"), who, which, st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("step"), who, st.integers(0, 3), st.sampled_from(["first_byte", "release"])),
        st.tuples(st.just("tell"), who, st.booleans()),
        st.tuples(st.just("deliver"), who, st.integers(0, 5)),  # never, again, and in any order
        st.tuples(st.just("meet"), who, which, st.integers(0, 2)),
        st.tuples(st.just("part"), who, which),
    ),
    max_size=40,
)


def play(script: list[tuple[Any, ...]]) -> tuple[list[Router], list[Update]]:
    """The routers after all that, and every update that was ever sent."""
    routers = [Router(SharedLoads(f"router-{index}")) for index in range(ROUTERS)]
    air: list[Update] = []
    for router in routers:
        for name in REPLICAS:
            router.meet(name, 0)
    for action, index, *said in script:
        router = routers[index]
        if action == "tell":
            air += router.shared.updates(full=said[0])
        elif action == "deliver":
            if said[0] < len(air):
                router.shared.heard(air[-1 - said[0]], 0.0)
        else:
            getattr(router, action)(*said)
        assert all(min(sums(load)) >= 0 for router in routers for load in router.loads.values())
    return routers, air


def refresh(routers: list[Router]) -> None:
    """Everybody's full refresh reaches everybody."""
    for update in [update for router in routers for update in router.shared.updates(full=True)]:
        for router in routers:
            router.shared.heard(update, 1.0)


@given(actions)
def test_one_full_refresh_of_each_makes_every_sum_right_whatever_was_lost_doubled_or_late(
    script: list[tuple[Any, ...]],
) -> None:
    routers, _ = play(script)
    refresh(routers)
    check(routers)


@given(actions, st.permutations(range(12)))
def test_what_arrives_after_a_newer_refresh_changes_nothing(script: list[tuple[Any, ...]], order: list[int]) -> None:
    routers, air = play(script)
    refresh(routers)
    for late in (air[index] for index in order if index < len(air)):
        for router in routers:
            router.shared.heard(late, 1.0)
    check(routers)


def test_an_older_update_never_replaces_a_newer_one() -> None:
    ours, load = SharedLoads(), ReplicaLoad("r")
    ours.add(load)
    older, newer = OpenTotals("r", 0, 5, 5, 1, 0), OpenTotals("r", 0, 0, 8, 0, 2)
    for update in (Update("them", 2, (newer,)), Update("them", 1, (older,)), Update("them", 2, (newer,))):
        ours.heard(update, 0.0)
        assert sums(load) == (0, 8, 0, 2)
    ours.heard(Update("them", 3, (), void_before=3), 0.0)
    assert sums(load) == (0, 0, 0, 0)
    ours.heard(Update("them", 2, (newer,)), 0.0)
    assert sums(load) == (0, 0, 0, 0)


@given(actions)
def test_changes_alone_keep_every_sum_right_when_nothing_is_lost(script: list[tuple[Any, ...]]) -> None:
    routers, _ = play([])
    for action, index, *said in script:
        if action in ("book", "step"):
            getattr(routers[index], action)(*said)
        for update in routers[index].shared.updates():
            for router in routers:
                router.shared.heard(update, 0.0)
        check(routers)


@given(actions)
def test_a_sender_that_is_silent_for_its_lease_is_counted_out_exactly(script: list[tuple[Any, ...]]) -> None:
    routers, _ = play(script)
    here, heard, silent = routers
    refresh(routers)
    here.shared.heard(Update(heard.shared.sender, 0), 5.0)  # a sign of life is enough
    assert here.shared.expire(before=2.0) == [silent.shared.sender]
    check_without_silent = [here, heard]
    for name, load in here.loads.items():
        assert sums(load) == true_sums(check_without_silent, name, here.epochs[name])
    here.shared.end(heard.shared.sender)
    assert here.shared.peers == 0
    assert all(sums(load) == sums(here.mirror[name]) for name, load in here.loads.items())


def test_a_new_incarnation_starts_at_zero() -> None:
    ours, theirs = SharedLoads(), SharedLoads()
    old = ReplicaLoad("r")
    theirs.add(old, epoch=1)
    old.book(100, 50)
    for update in theirs.updates():
        ours.heard(update, 0.0)
    before, after = ReplicaLoad("r"), ReplicaLoad("r")
    ours.add(before, epoch=1)
    assert sums(before) == (50, 100, 1, 0)
    ours.add(after, epoch=2)
    assert sums(after) == sums(before) == (0, 0, 0, 0)
    assert ours.epoch("r") == 2


def test_what_is_heard_of_a_replica_before_it_is_known_counts_once_it_joins() -> None:
    ours, theirs = SharedLoads(), SharedLoads()
    load, here = ReplicaLoad("r"), ReplicaLoad("r")
    theirs.add(load, epoch=7)
    load.book(100, 50)
    for update in theirs.updates():
        ours.heard(update, 1000.0)
    here.book(10, 10)
    ours.add(here, epoch=7)
    assert here.moved_at == 1000.0  # not since time 0: it would seem to hang
    assert sums(here) == (60, 110, 2, 0)
    ours.forget(here)
    assert sums(here) == (10, 10, 1, 0)  # its own booking is still open
    again = ReplicaLoad("r")
    ours.add(again, epoch=7)
    assert sums(again) == (50, 100, 1, 0)


def test_only_what_changed_is_told_and_of_the_own_bookings_only() -> None:
    ours, theirs = pair("r0", "r1")
    load, other = ReplicaLoad("r0"), ReplicaLoad("r1")
    ours.add(load)
    ours.add(other)
    ours.updates()
    assert ours.updates() == []
    ours.heard(Update(theirs.sender, 1, (OpenTotals("r1", 0, 5, 5, 1, 0),)), 0.0)
    assert ours.updates() == []  # the others know their own bookings
    load.book(9, 4).first_byte()
    (update,) = ours.updates()
    assert update.totals == (OpenTotals("r0", 0, 0, 9, 0, 1),)
    other.book(3, 3)
    (update,) = ours.updates(full=True)
    assert set(update.totals) == {OpenTotals("r0", 0, 0, 9, 0, 1), OpenTotals("r1", 0, 3, 3, 1, 0)}


def test_news_are_announced_once_until_they_are_told() -> None:
    shared, load = SharedLoads(), ReplicaLoad("r")
    shared.add(load)
    shared.updates()
    calls: list[int] = []
    shared.news = lambda: calls.append(1)
    booking = load.book(1, 1)
    booking.first_byte()
    assert len(calls) == 1
    shared.updates()
    booking.release()
    assert len(calls) == 2
    shared.updates()
    shared.forget(load)
    load.book(1, 1)
    assert len(calls) == 2


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0, 1)])
def test_a_refresh_too_large_for_one_update_is_right_in_any_order_of_its_parts(order: tuple[int, ...]) -> None:
    theirs, ours, loads = SharedLoads(), SharedLoads(), [ReplicaLoad(f"r{at}") for at in range(2 * MAX_TOTALS + 1)]
    for load in loads:
        ours.add(load)
        theirs.add(there := ReplicaLoad(load.name))
        there.book(2, 1)
    gone = ReplicaLoad("gone")
    ours.add(gone)
    ours.heard(Update(theirs.sender, 0, (OpenTotals("gone", 0, 7, 7, 7, 7),)), 0.0)
    parts = theirs.updates(full=True)
    assert len(parts) == 3
    assert max(len(part.totals) for part in parts) <= MAX_TOTALS
    for index in order:
        ours.heard(parts[index], 0.0)
    assert {sums(load) for load in loads} == {(1, 2, 1, 0)}
    assert sums(gone) == (0, 0, 0, 0)


def test_a_refresh_in_parts_takes_nothing_away_before_its_end() -> None:
    theirs, ours, loads = SharedLoads(), SharedLoads(), [ReplicaLoad(f"r{at}") for at in range(MAX_TOTALS + 1)]
    for load in loads:
        ours.add(load)
        theirs.add(there := ReplicaLoad(load.name))
        there.book(2, 1)
    for update in theirs.updates() + theirs.updates(full=True):
        ours.heard(update, 0.0)
    for update in theirs.updates(full=True):
        ours.heard(update, 0.0)
        assert {sums(load) for load in loads} == {(1, 2, 1, 0)}


def test_a_sender_cannot_fill_the_memory_with_replicas_that_nobody_knows() -> None:
    ours, load = SharedLoads(), ReplicaLoad("known")
    ours.add(load)
    strange = [OpenTotals(f"strange-{index}", 0, 1, 1, 1, 0) for index in range(MAX_UNKNOWN + 10)]
    ours.heard(Update("them", 1, (*strange, OpenTotals("known", 0, 1, 1, 1, 0))), 0.0)
    first, last = ReplicaLoad("strange-0"), ReplicaLoad(strange[-1].replica)
    ours.add(first)
    ours.add(last)
    assert sums(load) == sums(first) == (1, 1, 1, 0)
    assert sums(last) == (0, 0, 0, 0)


def test_an_update_with_a_negative_total_cannot_be_read() -> None:
    said = msgspec.msgpack.encode(Update("them", 1, (OpenTotals("r", 0, -1, 0, 0, 0),)))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(said, type=Update)


def test_a_router_does_not_count_itself_twice() -> None:
    shared, load = SharedLoads(), ReplicaLoad("r")
    shared.add(load)
    load.book(2, 1)
    for update in shared.updates(full=True):
        shared.heard(update, 0.0)
    assert sums(load) == (1, 2, 1, 0)
    assert shared.peers == 0
