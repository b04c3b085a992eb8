"""Whatever happens to requests and in whatever order, a replica's load is the sum of what is open on it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scoring.ledger import Booking, ReplicaLoad, Stage

steps = st.lists(
    st.one_of(
        st.tuples(st.just("book"), st.integers(0, 10_000), st.integers(0, 10_000)),
        st.tuples(st.sampled_from(["first_byte", "release"]), st.integers(0, 30), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
def test_the_load_is_the_sum_of_the_open_bookings(actions: list[tuple[str, int, int]]) -> None:
    load = ReplicaLoad("r")
    bookings: list[Booking] = []
    for action, one, two in actions:
        if action == "book":
            bookings.append(load.book(max(one, two), min(one, two)))
        elif one < len(bookings):  # also a second time, and a first byte after the end
            getattr(bookings[one], action)()
        waiting = [booking for booking in bookings if booking.stage is Stage.WAITING]
        decoding = [booking for booking in bookings if booking.stage is Stage.DECODING]
        assert load.waiting == len(waiting)
        assert load.decoding == len(decoding)
        assert load.running == len(waiting) + len(decoding)
        assert load.queued_tokens == sum(booking.uncached_tokens for booking in waiting)
        assert load.context_tokens == sum(booking.prompt_tokens for booking in waiting + decoding)
        assert load.served == len(bookings) - load.running
