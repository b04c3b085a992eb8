"""Batches on their way into Redis: the reader gets each in turn, or sees that one is missing."""

from __future__ import annotations

import asyncio

from radix.events import EventBatch
from router.inbox import CROWDED, Inbox


def batch(seq: int) -> EventBatch:
    return EventBatch("r", 1, seq, ())


def filled(*numbers: int, keep: int = 8) -> Inbox:
    inbox = Inbox(keep)
    for seq in numbers:
        inbox.put(batch(seq))
    return inbox


def test_each_batch_is_found_by_its_number() -> None:
    inbox = filled(4, 5, 6)
    assert [inbox.batch(seq) for seq in (4, 5, 6)] == [batch(4), batch(5), batch(6)]
    assert inbox.batch(7) is None
    assert Inbox().batch(0) is None


def test_order_of_arrival_and_doubles_do_not_matter() -> None:
    inbox = filled(6, 4, 4, 5, 6)
    assert [inbox.batch(seq) for seq in (4, 5, 6, 7)] == [batch(4), batch(5), batch(6), None]


def test_a_batch_that_never_came_shows_by_the_newest() -> None:
    assert filled(4, 6, 7).batch(5) == batch(7)


def test_a_batch_that_did_not_fit_shows_by_the_newest() -> None:
    inbox = filled(*range(10), keep=8)
    assert inbox.batch(1) == batch(9)
    assert inbox.batch(2) == batch(2)


def test_an_old_straggler_does_not_push_out_a_newer_batch() -> None:
    inbox = filled(*range(10, 18), 3, keep=8)
    assert [inbox.batch(seq) for seq in range(10, 18)] == [batch(seq) for seq in range(10, 18)]


async def test_readers_hear_of_news_until_they_leave() -> None:
    inbox = Inbox()
    news = inbox.subscribe()
    inbox.put(batch(0))
    assert news.is_set()
    news.clear()
    inbox.unsubscribe(news)
    inbox.put(batch(1))
    assert not news.is_set()


async def test_there_is_room_again_once_the_reader_has_caught_up() -> None:
    inbox = filled(*range(CROWDED - 1), keep=100)
    await asyncio.wait_for(inbox.room(), 5)
    inbox.put(batch(CROWDED - 1))
    waiting = asyncio.ensure_future(inbox.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    inbox.batch(5)
    await asyncio.wait_for(waiting, 5)
