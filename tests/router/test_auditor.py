"""The background audit: it finds replicas whose reports are wrong, and takes nothing else for wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import count
from random import Random

import aiohttp
import msgspec
import pytest

from radix.events import BlockRemoved, EventBatch, Registration, Snapshot, encode, pack_keys, unpack_keys
from radix.index import PrefixIndex
from router.auditor import Auditor
from router.fleet import Address, Fleet, Replica
from router.joins import fetch_block_list
from router.outbox import Outbox
from router.truth import LocalTruth
from router.upstream import ConnectionPool
from tests.router.harness import WAIT_S, Peer, Upstream
from tests.router.test_joins import stored

CONFIRM_S = 0.1


class Witness(Upstream):
    """A replica that answers auditors. It holds `blocks`, each without ancestors."""

    def __init__(self, name: str, blocks: Iterable[int] = (), epoch: int = 1) -> None:
        self.name = name
        self.epoch = epoch
        self.blocks = set(blocks)
        self.status = 200
        self.samples = 0
        self.questions = 0
        super().__init__(self._tell)

    def _tell(self, peer: Peer, head: bytes, body: bytes) -> None:
        blocks = sorted(self.blocks)
        if head.startswith(b"GET /radixgate/blocks?sample=256 "):
            self.samples += 1
            told = msgspec.msgpack.encode(pack_keys(Random(1).sample(blocks, min(256, len(blocks)))))
        elif head.startswith(b"GET /radixgate/blocks "):
            told = encode(Snapshot(self.name, self.epoch, 0, tuple(stored(key) for key in blocks)))
        else:
            assert head.startswith(b"POST /radixgate/holds ")
            self.questions += 1
            told = bytes(key in self.blocks for key in unpack_keys(body))
        status = f"HTTP/1.1 {self.status} X\r\nx-radixgate-epoch: {self.epoch}\r\n"
        peer.send(f"{status}content-length: {len(told)}\r\n\r\n".encode() + told)


class Scene:
    """A fleet, what is reported of it, and an auditor who looks at it all the time."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.fleet = Fleet()
        self.truth = LocalTruth(self.fleet)
        self.resynced: list[str] = []
        self.demoted: dict[str, str] = {}
        self.heals = True  # fetching a block list puts things right
        self.auditor = Auditor(
            self.fleet,
            self.believed,
            http,
            self.resync,
            lambda replica, reason: self.demoted.update({replica.name: reason}),
            interval_s=0.01,
            confirm_s=CONFIRM_S,
            rng=Random(1),
        )
        self._http = http
        self._outbox = Outbox(asyncio.get_running_loop().call_soon)
        self._resyncs: list[asyncio.Task[None]] = []

    def believed(self, replica: Replica) -> tuple[PrefixIndex, int] | None:
        reports = self.truth.reports(replica)
        return (self.truth.index, reports.rid) if reports is not None and replica.name not in self.demoted else None

    def join(self, witness: Witness, reported: Iterable[int]) -> Replica:
        """The replica is up, and has reported those blocks."""
        address = Address(witness.url)
        pool = ConnectionPool(address.host, address.port, None, self._outbox, connect_timeout_s=1)
        replica = Replica(witness.name, address, pool)
        replica.joined = True
        replica.registration = Registration(witness.name, witness.url, witness.epoch, ("m",), 16, 1000)
        self.fleet.add(replica)
        self.fleet.mark_up(replica)
        held = tuple(stored(key) for key in reported)
        self.truth.restore(replica, Snapshot(witness.name, witness.epoch, 0, held))
        return replica

    def resync(self, replica: Replica) -> None:
        self.resynced.append(replica.name)
        if self.heals:
            self._resyncs.append(asyncio.get_running_loop().create_task(self._restore(replica)))

    async def close(self) -> None:
        await self.auditor.close()
        await asyncio.gather(*self._resyncs)
        self.fleet.close()

    async def _restore(self, replica: Replica) -> None:
        self.truth.restore(replica, await fetch_block_list(self._http, replica.address.url))


@asynccontextmanager
async def scene(*witnesses: Witness) -> AsyncIterator[Scene]:
    async with aiohttp.ClientSession() as http:
        there = Scene(http)
        there.auditor.start()
        try:
            yield there
        finally:
            await there.close()
            for witness in witnesses:
                witness.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # what is awaited happens in threads and has no event
            await asyncio.sleep(0.005)


async def test_replicas_that_tell_the_truth_are_looked_at_in_turn_and_left_in_peace() -> None:
    one, other = Witness("one", range(300)), Witness("other", range(1000, 1005))
    async with scene(one, other) as there:
        there.join(one, range(300))
        there.join(other, range(1000, 1005))
        await until(lambda: one.samples > 3)
        assert abs(one.samples - other.samples) <= 1
        assert there.auditor.audited["one"] >= 3 * 2 * 256
        assert there.auditor.audited["other"] >= 2 * 2 * 5
        assert not there.auditor.false_positives.total() + there.auditor.false_negatives.total()
        assert not there.resynced
        assert not there.demoted


async def test_what_is_wrong_is_counted_by_its_kind() -> None:
    """Less than what makes a replica suspect."""
    witness = Witness("r", [*range(100), 999])
    async with scene(witness) as there:
        there.join(witness, range(102))
        await until(lambda: there.auditor.audited["r"] == 3 * (102 + 101))
        assert there.auditor.false_positives == {"r": 3 * 2}
        assert there.auditor.false_negatives == {"r": 3 * 1}
        shown = {sample.name: sample.value for family in there.auditor.metrics() for sample in family.samples}
        assert shown == {
            "radixgate_audited_blocks_total": 3 * (102 + 101),
            "radixgate_audit_false_positives_total": 3 * 2,
            "radixgate_audit_false_negatives_total": 3 * 1,
        }
        assert not there.resynced


@pytest.mark.parametrize(
    ("held", "reported"),
    [(range(200), range(100, 300)), ((), range(200)), (range(200), ())],
    ids=["some", "all", "new"],
)
async def test_a_replica_that_proves_wrong_is_asked_for_its_blocks_and_then_demoted(
    held: Iterable[int], reported: Iterable[int], caplog: pytest.LogCaptureFixture
) -> None:
    liar, honest = Witness("liar", held), Witness("honest", range(1000, 1200))
    async with scene(liar, honest) as there:
        there.heals = False
        there.join(honest, range(1000, 1200))
        replica = there.join(liar, reported)
        await until(lambda: "liar" in there.demoted)
        assert there.resynced == ["liar"], "one chance"
        assert list(there.demoted) == ["liar"]
        assert "blocks taken at random" in there.demoted["liar"]
        warned, told = [record for record in caplog.records if record.name == "radixgate.audit"][-2:]
        assert (warned.levelno, told.levelno) == (logging.WARNING, logging.ERROR)
        assert "radixgate audit" in told.getMessage()
        seen, honestly = liar.samples, honest.samples
        await until(lambda: honest.samples > honestly + 2)
        assert liar.samples == seen, "it is left alone"
        there.demoted.clear()
        liar.epoch, liar.blocks = 2, set(range(200))
        there.fleet.remove(replica, "a new incarnation joined")
        assert there.auditor.audited["liar"] == 0, "its figures end"
        there.join(liar, liar.blocks)
        await until(lambda: there.auditor.audited["liar"] >= 200)
        assert not there.demoted


async def test_a_replica_that_is_right_after_a_resync_stays() -> None:
    witness = Witness("r", range(200))
    async with scene(witness) as there:
        there.join(witness, range(100, 300))
        await until(lambda: there.resynced == ["r"])
        await until(lambda: witness.samples > 4)
        assert there.resynced == ["r"]
        counted = there.auditor.false_positives["r"]
        assert counted > 0
        witness.blocks = set(range(50, 250))
        await until(lambda: len(there.resynced) == 2)
        assert not there.demoted, "the audits in between found nothing wrong"


async def test_too_few_blocks_prove_nothing() -> None:
    witness = Witness("r", range(20))
    async with scene(witness) as there:
        there.join(witness, range(100, 120))
        await until(lambda: there.auditor.false_negatives["r"] >= 60)
        assert not there.resynced


async def test_a_replica_under_constant_change_is_never_taken_for_a_liar() -> None:
    """A third of its blocks change while reports are on their way, and the way takes a while."""
    witness = Witness("r", range(300))
    async with scene(witness) as there:
        replica = there.join(witness, range(300))
        keys, reports = count(1000), asyncio.Queue[EventBatch]()

        async def live() -> None:
            for seq in count():
                gone = sorted(witness.blocks)[:4]
                new = [next(keys) for _ in gone]
                witness.blocks = witness.blocks.difference(gone).union(new)
                reports.put_nowait(EventBatch("r", 1, seq, (BlockRemoved(pack_keys(gone)), *map(stored, new))))
                await asyncio.sleep(0.001)

        async def deliver() -> None:
            while True:
                await asyncio.sleep(CONFIRM_S / 4)
                while not reports.empty():
                    there.truth.apply(replica, reports.get_nowait())

        tasks = [asyncio.create_task(live()), asyncio.create_task(deliver())]
        await until(lambda: there.auditor.audited["r"] >= 5 * 512)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert witness.questions > witness.samples, "there were differences, but for second looks"
        assert not there.auditor.false_positives.total() + there.auditor.false_negatives.total()
        assert not there.resynced


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_replicas_that_know_no_such_questions_are_left_alone(status: int) -> None:
    mute, witness = Witness("mute", range(100)), Witness("r", range(100))
    mute.status = status
    async with scene(mute, witness) as there:
        there.join(mute, range(100))
        there.join(witness, range(100))
        await until(lambda: witness.samples > 3)
        assert (mute.questions, mute.samples) == (1, 0)


async def test_nothing_is_learned_from_errors_strangers_or_what_the_router_does_not_claim_to_know() -> None:
    failing, stranger, unknown = Witness("failing"), Witness("stranger"), Witness("unknown")
    dead, witness = Witness("dead"), Witness("r", range(100))
    failing.status = 500
    dead.close()
    async with scene(failing, stranger, unknown, witness) as there:
        for each in (failing, stranger, dead):
            there.join(each, range(100))
        stranger.epoch = 2  # has not registered yet
        there.fleet.mark_down(there.join(unknown, range(100)), "away")
        there.join(witness, range(100))
        await until(lambda: witness.samples > 3)
        assert failing.questions > 2
        assert stranger.questions > 2
        assert unknown.questions == 0
        assert list(there.auditor.audited) == ["r"]
        assert not there.resynced


async def test_a_replica_that_leaves_during_its_audit_is_forgotten() -> None:
    witness, other = Witness("r"), Witness("other", range(100))
    async with scene(witness, other) as there:
        replica = there.join(witness, range(100))
        await until(lambda: witness.samples == 1)
        there.fleet.remove(replica, "left")
        there.join(other, range(100))
        await until(lambda: there.auditor.audited["other"] > 0)  # one after the other
        assert there.auditor.audited["r"] == 0
        assert not there.resynced
