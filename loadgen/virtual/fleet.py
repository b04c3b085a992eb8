"""One policy's run in simulated time: requests arrive, the router places them, replicas serve them.

Owns the assembly and what happens to requests on their way. Must never decide anything that the router, a replica or
the set-up decides, nor depend on anything but the set-up, the asks and the policy: equal ones give equal outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from xxhash import xxh3_64_intdigest

from loadgen.traces import BLOCK_TOKENS
from loadgen.virtual.channel import EventChannel, Line
from loadgen.virtual.clock import VirtualClock
from loadgen.virtual.incidents import Incident, check_incidents
from loadgen.virtual.prefill import PrefillReplica
from loadgen.virtual.prompts import Ask, Job
from loadgen.virtual.replica import EngineReplica, Listener, VirtualReplica
from loadgen.virtual.router import Seat, VirtualRouter
from replica.blocks import BlockPool
from replica.reuse import DEFAULT_EVICTION, make_eviction
from replica.scheduler import NeverFits, SchedulerLimits
from replica.simulated import TimingModel
from scoring.answers import TYPICAL_TOKENS
from scoring.ledger import Booking
from scoring.policies import Policy

MAX_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class FleetSetup:
    """`capacity_tokens` is the KV cache of one replica; `prefill_rate` (tokens a second) also replaces that of
    `timing`. `block_tokens` counts only for the full engine model: prefill-only has the trace's own blocks. `leaps` is
    off only to check that it makes no difference. `eviction` is a name in replica/reuse.py.
    """

    replicas: int
    capacity_tokens: int
    prefill_only: bool
    prefill_rate: float
    seed: int = 1
    block_tokens: int = BLOCK_TOKENS
    limits: SchedulerLimits = field(default_factory=SchedulerLimits)
    timing: TimingModel = field(default_factory=TimingModel)
    line: Line = field(default_factory=Line)
    incidents: tuple[Incident, ...] = ()
    hints: bool = True
    leaps: bool = True
    eviction: str = DEFAULT_EVICTION

    @property
    def key_tokens(self) -> int:
        """Prompt tokens that a block key stands for."""
        return BLOCK_TOKENS if self.prefill_only else self.block_tokens

    def pool(self, clock: VirtualClock, name: str) -> BlockPool:
        """An empty KV cache of the replica `name`. Raises ValueError when it would have no block."""
        blocks, size = self.capacity_tokens // self.key_tokens, 1 if self.prefill_only else self.block_tokens
        eviction = make_eviction(self.eviction, blocks, f"{self.seed} eviction of {name}")
        # xxh3_64_intdigest: what block_key does to one block, without the detour.
        return BlockPool(blocks, size, xxh3_64_intdigest, eviction=eviction, clock=lambda: clock.now)


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """What one replica did. `computed_tokens` includes output tokens, `busy_s` is the time of its steps."""

    name: str
    joined_s: float
    computed_tokens: int
    busy_s: float
    preemptions: int
    batches_lost: int
    snapshots: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """`jobs` in order of arrival; a job with an `error` was not served."""

    jobs: list[Job]
    replicas: list[ReplicaFacts]
    end_s: float


class Member(Listener):
    """A replica with its seat at the router, and the channel between them."""

    def __init__(self, fleet: VirtualFleet, number: int) -> None:
        setup, clock = fleet.setup, fleet.clock
        name = f"replica-{number}"
        self.joined_s = clock.now
        self.bookings: dict[Job, Booking] = {}
        pool = setup.pool(clock, name)
        self.seat: Seat = fleet.router.join(name, pool.total * setup.key_tokens)
        rng = Random(f"{setup.seed} events of {name}")
        self.channel = EventChannel(clock, name, pool, self.seat.feed, setup.line, rng)
        self.replica = _replica(setup, clock, name, pool, self)
        self._clock = clock
        self._answer_times = fleet.router.answer_times

    def first_token(self, job: Job, cached_tokens: int) -> None:
        if job.first_token_s is None:
            job.first_token_s = self._clock.now
            job.cached_tokens = cached_tokens
        self.bookings[job].first_byte(self._clock.now, cached_tokens=cached_tokens)

    def finished(self, job: Job) -> None:
        job.finished_s = self._clock.now
        assert job.first_token_s is not None
        self._answer_times.observe(TYPICAL_TOKENS, job.finished_s - job.first_token_s)
        self.bookings.pop(job).release(self._clock.now)

    def stepped(self) -> None:
        self.channel.publish()

    def facts(self) -> ReplicaFacts:
        replica, channel = self.replica, self.channel
        return ReplicaFacts(
            replica.name,
            self.joined_s,
            replica.computed_tokens,
            replica.busy_s,
            replica.preemptions,
            channel.lost,
            channel.repairs,
        )


class VirtualFleet:
    """Build it, then `run` it once. `on_arrival` hears the number of each request that arrives."""

    def __init__(self, setup: FleetSetup, policy: Policy, on_arrival: Callable[[int], None] | None = None) -> None:
        self.setup = setup
        self.clock = VirtualClock()
        self.router = VirtualRouter(policy, self.clock, setup.key_tokens, hints=setup.hints)
        self.members = [Member(self, number) for number in range(setup.replicas)]
        self._by_seat = {member.seat: member for member in self.members}
        self._on_arrival = on_arrival

    def run(self, asks: Sequence[Ask]) -> Outcome:
        """Raises ValueError for an incident that befalls a replica which is not there."""
        check_incidents(self.setup.incidents, self.setup.replicas)
        jobs = [Job(ask) for ask in asks]
        for incident in self.setup.incidents:
            self.clock.at(incident.at_s, lambda incident=incident: self._happen(incident))  # type: ignore[misc]
        for job in jobs:
            self.clock.at(job.ask.at_s, lambda job=job: self._arrive(job))  # type: ignore[misc]
        self.clock.run()
        return Outcome(jobs, [member.facts() for member in self.members], self.clock.now)

    def _arrive(self, job: Job) -> None:
        if self._on_arrival is not None:
            self._on_arrival(job.ask.index)
        self._send(job)

    def _send(self, job: Job) -> None:
        job.attempts += 1
        if not self.router.seats or job.attempts > MAX_ATTEMPTS:
            job.error = "no replica is left" if not self.router.seats else f"gave up after {MAX_ATTEMPTS} attempts"
            return
        seat, booking = self.router.place(job.ask)
        member = self._by_seat[seat]
        job.replica = member.replica.name
        member.bookings[job] = booking
        try:
            member.replica.take(job)
        except NeverFits as error:
            job.error = str(error)
            member.bookings.pop(job).release(self.clock.now)

    def _happen(self, incident: Incident) -> None:
        if incident.action == "add":
            member = Member(self, len(self.members))
            self.members.append(member)
            self._by_seat[member.seat] = member
            return
        member = self.members[incident.replica]
        match incident.action:
            case "slow":
                member.replica.slow(incident.factor)
            case "remove":
                self.router.close(member.seat)
            case _:
                self._kill(member)

    def _kill(self, member: Member) -> None:
        unfinished = member.replica.stop()
        self.router.leave(member.seat)
        for job in unfinished:
            member.bookings.pop(job).release(self.clock.now)
            self._send(job)


def _replica(setup: FleetSetup, clock: VirtualClock, name: str, pool: BlockPool, listener: Listener) -> VirtualReplica:
    if setup.prefill_only:
        return PrefillReplica(name, clock, pool, listener, setup.prefill_rate)
    return EngineReplica(name, clock, pool, listener, setup.limits, setup.timing, leaps=setup.leaps)
