"""Batches are numbered without gaps, and lose nothing unless a reader lags too far."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from radix.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch, pack_keys
from replica.journal import BATCH_WEIGHT, EventLog, Journal


def stored(*keys: int, parent: int | None = None) -> BlockStored:
    return BlockStored(parent, pack_keys(keys))


def test_runs_become_one_event_and_order_is_kept() -> None:
    log = EventLog()
    log.stored(None, 1)
    log.stored(1, 2)
    log.stored(1, 3)
    log.removed(3)
    log.removed(2)
    log.stored(1, 2)
    log.cleared()
    log.stored(None, 1)
    assert log.drain() == (
        stored(1, 2),
        stored(3, parent=1),
        BlockRemoved(pack_keys([3, 2])),
        stored(2, parent=1),
        AllBlocksCleared(),
        stored(1),
    )
    assert log.drain() == ()


@given(st.lists(st.sampled_from(["append", "read one", "read both", "snapshot"])))
def test_every_reader_gets_every_event_once_and_in_order(actions: list[str]) -> None:
    journal = Journal("r", 7)
    cursors = [0, 0]
    read: list[list[Event]] = [[], []]
    written: list[Event] = []

    def drain(reader: int) -> None:
        while (batch := journal.batch(cursors[reader])) is not None:
            assert batch == EventBatch("r", 7, cursors[reader], batch.events)
            cursors[reader] += 1
            read[reader].extend(batch.events)

    for action in actions:
        if action == "append":
            event = stored(len(written))
            written.append(event)
            journal.append((event,))
        elif action == "snapshot":
            assert journal.snapshot(()).seq == journal.next_seq
            before = len(written)
            drain(1)
            assert len(read[1]) == before
            assert journal.next_seq == cursors[1], "a snapshot stands between two batches"
        else:
            drain(0)
            if action == "read both":
                drain(1)
                assert cursors[0] == cursors[1]
    for reader in (0, 1):
        drain(reader)
        assert read[reader] == written


def test_while_nobody_reads_steps_share_a_batch() -> None:
    journal = Journal("r", 7)
    for key in range(3):
        journal.append((stored(key),))
    batch = journal.batch(0)
    assert batch is not None
    assert len(batch.events) == 3
    assert journal.batch(1) is None


def test_a_reader_that_lags_too_far_sees_a_gap_and_goes_on_from_the_newest() -> None:
    journal = Journal("r", 7, keep=2)
    for _ in range(5):
        journal.append((stored(*range(BATCH_WEIGHT)),))
    assert journal.next_seq == 5
    batch = journal.batch(0)
    assert batch is not None
    assert batch.seq == 4
    kept = journal.batch(3)
    assert kept is not None
    assert kept.seq == 3


def test_news_reach_subscribers_until_they_leave() -> None:
    journal = Journal("r", 7)
    news = journal.subscribe()
    journal.append(())
    assert not news.is_set()
    journal.append((AllBlocksCleared(),))
    assert news.is_set()
    news.clear()
    journal.unsubscribe(news)
    journal.append((AllBlocksCleared(),))
    assert not news.is_set()
