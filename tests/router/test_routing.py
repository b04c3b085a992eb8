"""Decisions over a whole fleet: truth and predictions join into overlaps, and no shape of traffic ruins the balance."""

from __future__ import annotations

from collections import Counter, deque
from random import Random

from radix.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch, Registration, pack_keys
from router.decide import Decider, Decision
from router.fleet import Address, Fleet, Replica
from router.outbox import Outbox
from router.prompt import PromptKeys
from router.residency import Residency
from router.routes import InferenceRoute
from router.telemetry import Telemetry
from router.truth import LocalTruth
from router.upstream import ConnectionPool
from scoring.decision import Query
from scoring.ledger import Booking
from scoring.policies import make_policy


class Setting:
    """A fleet without sockets, and a decider over it."""

    def __init__(self, *, reporting: int = 0, silent: int = 0, policy: str = "kv", block_size: int = 16) -> None:
        self.fleet = Fleet()
        self.truth = LocalTruth(self.fleet)
        self.residency = Residency(self.fleet, self.truth, memory_blocks=10_000, memory_ttl_s=100.0)
        self.decider = Decider(make_policy(policy, Random(3)), self.residency, Telemetry())
        for number in range(reporting + silent):
            replica = Replica(f"r{number}", Address("http://127.0.0.1:1"), _pool())
            if number < reporting:
                replica.joined = True
                replica.registration = Registration(replica.name, "", 1, ("m",), block_size, 1000)
            self.fleet.add(replica)
            self.fleet.mark_up(replica)

    def replica(self, name: str) -> Replica:
        found = self.fleet.get(name)
        assert found is not None
        return found

    def decide(self, keys: list[int], *, mode: str = "exact", block_size: int = 16, now: float = 0.0) -> Decision:
        prompt = PromptKeys(keys, len(keys) * block_size + 1, block_size, "exact" if mode == "exact" else "text")
        pool = self.fleet.table.everyone
        query = Query(prompt.tokens, 100)
        return self.decider.decide(pool.up, pool.names, prompt, query, "id", "m", "/v1/chat/completions", now)

    def report(self, name: str, keys: list[int]) -> None:
        self.say(name, 0, BlockStored(None, pack_keys(keys)))

    def say(self, name: str, seq: int, event: Event) -> None:
        self.truth.apply(self.replica(name), EventBatch(name, 1, seq, (event,)))


def _pool() -> ConnectionPool:
    return ConnectionPool("127.0.0.1", 1, None, Outbox(_unused), connect_timeout_s=1)


def _unused(flush: object) -> None:
    raise AssertionError("nothing is written here")


def test_reported_blocks_draw_exact_prompts() -> None:
    setting = Setting(reporting=3)
    setting.report("r1", [1, 2, 3])
    decision = setting.decide([1, 2, 3, 4])
    assert decision.replica.name == "r1"
    assert decision.receipt.overlap_tokens == [0, 48, 0]


def test_at_least_one_token_is_always_computed() -> None:
    setting = Setting(reporting=2)
    setting.report("r1", [1, 2])
    prompt = PromptKeys([1, 2], 32, 16, "exact")
    pool = setting.fleet.table.everyone
    receipt = setting.decider.decide(pool.up, pool.names, prompt, Query(32, 1), "id", "m", "/", 0.0).receipt
    assert receipt.overlap_tokens == [0, 31]


def test_a_hint_bridges_the_time_until_the_report_and_then_goes() -> None:
    setting = Setting(reporting=4)
    shared = list(range(1, 101))
    first = setting.decide(shared).replica
    assert all(setting.decide([*shared, key], now=1.0).replica is first for key in range(200, 204))
    assert setting.decide([1, 2, 3], now=1000.0).receipt.overlap_tokens == [0, 0, 0, 0]


def test_silent_replicas_are_believed_to_hold_what_they_were_sent() -> None:
    setting = Setting(silent=4)
    first = setting.decide([1, 2, 3], mode="text").replica
    assert setting.decide([1, 2, 3, 4], mode="text", now=50.0).replica is first
    assert max(setting.decide([1, 2], mode="text", now=500.0).receipt.overlap_tokens) == 0


def test_text_prompts_are_remembered_for_replicas_whose_reports_cannot_match_them() -> None:
    setting = Setting(reporting=4)
    first = setting.decide([1, 2, 3], mode="text").replica
    assert setting.decide([1, 2, 3, 4], mode="text", now=60.0).replica is first  # long after a hint would be gone


def test_reports_of_another_block_size_are_not_mistaken() -> None:
    setting = Setting(reporting=2, block_size=32)
    setting.report("r1", [1, 2, 3])
    assert setting.decide([1, 2, 3], block_size=16).receipt.overlap_tokens == [0, 0]


def test_a_replica_that_is_down_loses_its_blocks_at_once() -> None:
    setting = Setting(reporting=2, silent=1)
    setting.report("r0", [1, 2, 3])
    setting.fleet.mark_down(setting.replica("r0"), "test")
    assert setting.decide([1, 2, 3]).receipt.overlap_tokens == [0, 0]
    setting.fleet.mark_up(setting.replica("r0"))
    fresh = setting.decide([9]).receipt
    assert fresh.candidates == ("r0", "r1", "r2")
    assert fresh.overlap_tokens == [0, 0, 0]


def test_prompts_that_all_share_their_first_block_do_not_pile_up_on_one_replica() -> None:
    # Longest prefix alone sends every one of these to the replica that got the first.
    for setting in (Setting(reporting=8), Setting(silent=8)):
        counts: Counter[str] = Counter()
        under_way: deque[Booking] = deque()
        for number in range(800):
            decision = setting.decide([1, *range(1000 + 40 * number, 1040 + 40 * number)], now=number * 0.01)
            counts[decision.replica.name] += 1
            under_way.append(decision.booking)
            if len(under_way) > 16:
                under_way.popleft().release()
        assert max(counts.values()) <= 1.5 * 100
        assert len(counts) == 8


def test_a_reported_eviction_is_believed_at_once_whatever_was_routed_there() -> None:
    setting = Setting(reporting=1)
    setting.decide([1, 2, 3])
    setting.say("r0", 0, BlockStored(None, pack_keys([1, 2, 3])))
    assert setting.decide([1, 2, 3, 4]).receipt.overlap_tokens == [3 * 16]
    setting.say("r0", 1, BlockRemoved(pack_keys([3, 2])))
    assert setting.decide([1, 2, 3, 4]).receipt.overlap_tokens == [16]
    setting.say("r0", 2, AllBlocksCleared())
    assert setting.decide([1, 2, 3, 4]).receipt.overlap_tokens == [0]


def test_a_request_that_failed_takes_back_only_what_it_brought() -> None:
    setting = Setting(silent=1)
    known = list(range(1, 21))
    setting.decide(known, mode="text")
    again = setting.decide(known, mode="text", now=1.0)
    again.unplaced()  # it brought nothing: all of it was there already
    longer = setting.decide([*known, 30, 31], mode="text", now=2.0)
    assert longer.receipt.overlap_tokens == [20 * 16]
    longer.unplaced()
    assert setting.decide([*known, 30, 31], mode="text", now=3.0).receipt.overlap_tokens == [20 * 16]


def test_an_attempt_is_decided_by_what_is_known_then_not_when_the_request_came() -> None:
    setting = Setting(silent=2)
    setting.replica("r0").load.book(1000, 1000, 5.0)  # a minute later, nothing has come of it
    setting.replica("r1").load.book(2000, 2000, 64.95)
    prompt, asked = PromptKeys([], 1000, 16, "none"), Query(1000, 1, now=5.0)
    route = InferenceRoute(setting.fleet, setting.decider, prompt, asked, "id", "m", "/v1/completions", lambda: 65.0)
    assert route.choose(frozenset()).replica.name == "r1"
