"""Whose reports the router believes: until they prove wrong, or not at all."""

from __future__ import annotations

import pytest

from radix.events import BlockStored, EventBatch, Registration, Snapshot, pack_keys, unpack_keys
from router.fleet import Address, Fleet, Replica
from router.outbox import Outbox
from router.residency import Residency
from router.truth import LocalTruth
from router.upstream import ConnectionPool

PROMPT = [1, 2, 3, 4]


class Believer:
    """A fleet without sockets, and what is believed of it."""

    def __init__(self, *, private: bool = False) -> None:
        self.fleet = Fleet()
        self.truth = LocalTruth(self.fleet)
        self.residency = Residency(self.fleet, self.truth, memory_blocks=1000, memory_ttl_s=100.0, private=private)

    def add(self, name: str = "r", epoch: int = 1, *, joined: bool = True) -> Replica:
        pool = ConnectionPool("127.0.0.1", 1, None, Outbox(lambda flush: None), connect_timeout_s=1)
        replica = Replica(name, Address("http://127.0.0.1:1"), pool)
        replica.joined = joined
        if joined:
            replica.registration = Registration(name, "", epoch, ("m",), 16, 1000)
        self.fleet.add(replica)
        self.fleet.mark_up(replica)
        return replica

    def report(self, replica: Replica, *keys: int, seq: int = 0) -> None:
        assert replica.registration is not None
        batch = EventBatch(replica.name, replica.registration.epoch, seq, (BlockStored(None, pack_keys(keys)),))
        self.truth.apply(replica, batch)

    def overlap(self, replica: Replica, now: float = 0.0) -> int:
        return self.residency.overlaps(PROMPT, [replica], 16, now)[0]


def test_reports_are_believed_at_first() -> None:
    believer = Believer()
    replica = believer.add()
    believer.report(replica, 1, 2)
    assert believer.overlap(replica) == 2
    assert believer.residency.trusted(replica)
    assert believer.residency.standing(replica) == "trusted"


def test_a_demoted_replica_is_known_by_what_it_was_sent_alone() -> None:
    believer = Believer()
    replica = believer.add()
    believer.report(replica, 1, 2)
    believer.residency.demote(replica, "3 of 100 blocks were not there")
    assert believer.overlap(replica) == 0
    assert not believer.residency.trusted(replica)
    assert believer.residency.standing(replica) == "demoted: 3 of 100 blocks were not there"
    believer.report(replica, 1, 2, 3, 4, seq=1)  # still taken, and counted
    assert believer.residency.reported_blocks(replica) == 4
    assert believer.overlap(replica) == 0
    believer.residency.routed(replica, PROMPT[:3], 16, 0.0)
    assert believer.overlap(replica) == 3
    assert believer.overlap(replica, now=60.0) == 3  # as memory, which lasts longer than a hint


def test_a_demotion_outlasts_an_absence_and_ends_with_the_incarnation() -> None:
    believer = Believer()
    first = believer.add(epoch=1)
    believer.residency.demote(first, "wrong")
    believer.fleet.mark_down(first, "test")
    believer.fleet.mark_up(first)
    assert not believer.residency.trusted(first)
    believer.fleet.remove(first, "its lease ran out")
    back = believer.add(epoch=1)
    believer.report(back, 1, 2)
    assert believer.overlap(back) == 0
    believer.fleet.remove(back, "a new incarnation joined")
    new = believer.add(epoch=2)
    believer.report(new, 1, 2)
    assert believer.residency.trusted(new)
    assert believer.overlap(new) == 2


def test_only_reports_can_be_distrusted() -> None:
    believer = Believer()
    silent = believer.add(joined=False)
    assert believer.residency.standing(silent) == "none"
    with pytest.raises(ValueError, match="makes no reports"):
        believer.residency.demote(silent, "wrong")


def test_a_private_router_believes_only_what_it_routed_itself() -> None:
    believer = Believer(private=True)
    replica = believer.add()
    believer.report(replica, 1, 2)
    assert believer.overlap(replica) == 0
    assert believer.residency.reported_blocks(replica) == 2
    assert believer.residency.standing(replica) == "ignored"
    believer.residency.routed(replica, PROMPT, 16, 0.0)
    assert believer.overlap(replica) == 4


def test_what_is_reported_reads_like_the_replicas_own_block_list() -> None:
    believer = Believer()
    replica, other = believer.add("r", epoch=7), believer.add("other")
    believer.report(replica, 1, 2, 3)
    believer.report(other, 1, 2, 9)
    held = believer.residency.reported(replica)
    assert held is not None
    assert (held.replica, held.epoch, held.seq) == ("r", 7, 1)
    assert {key for event in held.stored for key in unpack_keys(event.packed)} == {1, 2, 3}
    again = Believer()
    copy = again.add("r", epoch=7)
    again.truth.restore(copy, Snapshot("r", 7, 1, held.stored))
    assert again.overlap(copy) == 3
    assert believer.residency.reported(believer.add("silent", joined=False)) is None
