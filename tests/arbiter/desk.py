"""A desk at which tests ask the core for leases: it keeps the time and collects the effects by ticket."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from arbiter_sidecar.arbiter import Arbiter, ArbiterConfig, BeatResult, Names, effects
from arbiter_sidecar.arbiter.books import Books, OveruseConfig, QueueConfig
from arbiter_sidecar.errors import ArbiterError
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.kv import KvPlan
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.plans import Plan
from arbiter_sidecar.requests import AllocationRequest, Beat, KvShare, PreemptionRequest, ReclaimAck, Report, ShardPlace
from arbiter_sidecar.types import (
    GIB,
    Attribution,
    DeviceFacts,
    DeviceId,
    DeviceKind,
    DeviceSample,
    EventKind,
    Guest,
    LeaseId,
    LeaseState,
    Priority,
    Process,
    ReportOutcome,
    Ticket,
    Verdict,
    WorkloadType,
)

LLM = WorkloadType.LLM_INFERENCE
IMAGE = WorkloadType.IMAGE_GENERATION
VIDEO = WorkloadType.VIDEO_GENERATION

#: Literal times jump by many seconds, which the guard would take for a pause of the arbiter itself. With an elasticity
#: of 1 the bytes of a lease are proportional to its quality, which keeps the worked numbers short.
#: The line is strict unless a test is about passing it, and nobody is called to order for using more than it leased.
LINEAR = ArbiterConfig(
    pause_guard_s=0.0,
    elasticity=dict.fromkeys(WorkloadType, 1.0),
    queue=QueueConfig(aging_s=math.inf, backfill=0),
    overuse=OveruseConfig(slack_bytes=1 << 53),
)


def gib(units: float) -> int:
    """Whole bytes of so many GiB, rounded up as a promise is; a thousandth of a byte is floating-point noise."""
    return math.ceil(units * GIB - 1e-3)


def process(pid: int) -> Process:
    """The process of this id."""
    return Process(pid, 1000 + pid)


def wish(
    holder: str = "worker",
    size: float = 1.0,
    *,
    workload: WorkloadType = LLM,
    priority: Priority = Priority.NORMAL,
    rigid: bool = False,
    floor: float | None = None,
    min_quality: float | None = None,
    max_quality: float = 1.0,
    pids: tuple[int, ...] = (),
    hidden: bool = False,
    request_id: str = "",
    namespace: str = "default",
    device: str = "",
    ttl: float = 15.0,
    wait: float = 0.0,
    window: float = 0.0,
    preemptible: bool = True,
    may_preempt: bool = False,
    labels: Mapping[str, str] | None = None,
    kv: KvShare | None = None,
    shard: ShardPlace | None = None,
) -> AllocationRequest:
    """A request for ``size`` GiB; a rigid one has quality 1 or none, a hidden one has processes nobody can see."""
    return AllocationRequest(
        holder=holder,
        workload=workload,
        memory_bytes=gib(size),
        request_id=request_id,
        namespace=namespace,
        pids=pids,
        processes=() if hidden else tuple(process(pid) for pid in pids),
        priority=priority,
        min_memory_bytes=None if floor is None else gib(floor),
        min_quality=1.0 if rigid else min_quality,
        max_quality=max_quality,
        device_id=device,
        ttl_s=ttl,
        wait_s=wait,
        startup_window_s=window,
        preemptible=preemptible,
        may_preempt=may_preempt,
        labels=labels or {},
        kv=kv,
        shard=shard,
    )


def taking(
    need: float,
    lease: Lease | None = None,
    priority: Priority | None = None,
    device: str = "",
    partial: bool = False,
    grace: float | None = None,
    request_id: str = "",
) -> PreemptionRequest:
    """A wish to have ``need`` GiB taken from others."""
    return PreemptionRequest(
        need_bytes=gib(need),
        lease_id="" if lease is None else lease.lease_id,
        device_id=device,
        priority=priority,
        allow_partial=partial,
        grace_s=grace,
        request_id=request_id,
    )


@dataclass(slots=True)
class CountedNames:
    """Names that count, so that the same commands give the same names."""

    leases: int = 0
    handles: int = 0

    def lease_id(self) -> str:
        """The next id."""
        self.leases += 1
        return f"lease-{self.leases}"

    def handle(self) -> int:
        """The next handle."""
        self.handles += 1
        return self.handles


def counted_names() -> Names:
    """Names of a fresh count."""
    counted = CountedNames()
    return Names(lease_id=counted.lease_id, handle=counted.handle)


def describe(effect: effects.Effect) -> str:
    """An effect in one line that has the same words whenever the same thing happened."""
    if isinstance(effect, effects.Granted):
        return f"granted {effect.ticket} {effect.lease.lease_id} {effect.waited_s:.6f} {effect.already_granted}"
    if isinstance(effect, effects.Refused):
        return f"refused {effect.ticket} {effect.error.reason} {effect.error.message}"
    if isinstance(effect, effects.Happened):
        return f"happened {effect.kind.name} {effect.lease_id} {effect.request_id} {dict(effect.fields)}"
    if isinstance(effect, effects.PlanClosed):
        plan = effect.plan
        came_to = "nothing" if plan is None else f"{plan.plan_id} {_confirmed(plan)}"
        return f"closed {effect.ticket} {came_to} {effect.error!r}"
    if isinstance(effect, effects.Reserved):
        return f"reserved {effect.ticket} {effect.reservation.reservation_id} {effect.reservation.tokens}"
    if isinstance(effect, effects.ReservationRefused):
        return f"not reserved {effect.ticket} {effect.error!r}"
    if isinstance(effect, effects.ShardsChanged):
        return f"shards changed {effect.group.name} {effect.group.version}"
    lease = effect.lease
    return f"{type(effect).__name__} {lease.lease_id} {lease.revision} {lease.quality!r} {lease.end_reason.name}"


def _confirmed(plan: Plan | KvPlan) -> int:
    return plan.confirmed if isinstance(plan, KvPlan) else plan.confirmed_bytes


class Desk:
    """An arbiter, the time, and what came out so far."""

    def __init__(self, config: ArbiterConfig = LINEAR, *, epoch: int = 1, now: float = 0.0) -> None:
        self.now = now
        self.arbiter = Arbiter(config, epoch=epoch, names=counted_names(), now=now)
        self.effects: list[effects.Effect] = []
        self.outcomes: dict[Ticket, list[effects.Granted | effects.Refused]] = {}
        self.closed: dict[Ticket, effects.PlanClosed] = {}

    # What is there ----------------------------------------------------------------------------------------------------

    @property
    def books(self) -> Books:
        """The books, to be read."""
        return self.arbiter.books

    def device(self, name: str = "box") -> DeviceBook:
        """The book of a device."""
        return self.books.devices[DeviceId(name)]

    def add(self, name: str, size: float, attribution: Attribution) -> DeviceBook:
        """Adds a device of which exactly ``size`` GiB may be leased."""
        static = attribution is Attribution.SELF_REPORTED
        facts = DeviceFacts(
            device_id=DeviceId(name),
            name=name,
            index=len(self.books.devices),
            kind=DeviceKind.STATIC if static else DeviceKind.NVIDIA,
            total_bytes=gib(size),
            capacity_bytes=gib(size),
            attribution=attribution,
        )
        self.arbiter.add_device(facts, self.now)
        self.collect()
        return self.device(name)

    def box(self, size: float = 24.0, name: str = "box") -> DeviceBook:
        """Adds a device on which nothing is measured."""
        return self.add(name, size, Attribution.SELF_REPORTED)

    def card(self, size: float = 24.0, name: str = "gpu") -> DeviceBook:
        """Adds a device on which every process is measured, with a first sample that shows nobody."""
        device = self.add(name, size, Attribution.PER_PROCESS)
        self.sample({}, name=name)
        return device

    def picture(self) -> bytes:
        """Everything the core holds; equal pictures mean that nothing has changed but the time."""
        self.arbiter.confirm((), self.now)
        return pickle.dumps(self.arbiter)

    # Commands ---------------------------------------------------------------------------------------------------------

    def at(self, now: float) -> None:
        """Lets time pass until ``now``, as the runtime does: in steps, until nothing more is due."""
        self.now = now
        while self.arbiter.advance(now):
            self.collect()
        self.collect()

    def live(self, until: float, *leases: Lease, held: Mapping[int, float | None] | None = None) -> None:
        """Lets time pass in tenths of a second; ``leases`` beat every second, ``held`` is what each sample shows."""
        for tenth in range(math.floor(self.now * 10) + 1, math.floor(until * 10) + 1):
            self.now = tenth / 10
            if held is not None:
                self.sample(held)
            if tenth % 10 == 0:
                self.beat(*leases)
            self.at(self.now)

    def ask(self, request: AllocationRequest) -> Ticket:
        """Asks for a lease."""
        ticket = self.arbiter.allocate(request, self.now)
        self.collect()
        return ticket

    def take(self, request: AllocationRequest) -> Lease:
        """Asks for a lease that must be granted at once, and has it delivered."""
        ticket = self.ask(request)
        lease = self.lease(ticket)
        self.arbiter.delivered(ticket)
        return lease

    def cancel(self, ticket: Ticket) -> None:
        """The caller goes away."""
        self.arbiter.cancel(ticket, self.now)
        self.collect()

    def release(self, lease: Lease) -> bool:
        """Gives a lease back."""
        ended = self.arbiter.release(lease.lease_id, lease.fence, self.now)
        self.collect()
        return ended

    def beat(self, *leases: Lease) -> list[BeatResult]:
        """A heartbeat by handle."""
        outcome = self.arbiter.heartbeat(Beat(handles=tuple(lease.handle for lease in leases)), self.now)
        self.collect()
        return outcome.results

    def report(
        self,
        lease: Lease,
        outcome: ReportOutcome = ReportOutcome.APPLIED,
        *,
        revision: int | None = None,
        fence: int | None = None,
        achievable: float | None = None,
        used: int | None = None,
        latencies: tuple[float, ...] = (),
        busy: float = 0.0,
        acks: tuple[ReclaimAck, ...] = (),
    ) -> BeatResult:
        """A heartbeat with a report, by default that the newest directive is applied."""
        report = Report(
            lease_id=lease.lease_id,
            fence=lease.fence if fence is None else fence,
            applied_revision=lease.revision if revision is None else revision,
            outcome=outcome,
            achievable_quality=achievable,
            used_memory_bytes=used,
            shard_latencies_us=latencies,
            busy_for_s=busy,
            reclaim_acks=acks,
        )
        results = self.arbiter.heartbeat(Beat(reports=(report,)), self.now).results
        self.collect()
        assert len(results) == 1
        return results[0]

    def preempt(
        self,
        need: float,
        lease: Lease | None = None,
        *,
        priority: Priority | None = None,
        device: str = "",
        partial: bool = False,
        grace: float | None = None,
        request_id: str = "",
    ) -> Ticket:
        """Has so many GiB taken from others, for a lease or for a person."""
        asked = taking(need, lease, priority, device, partial, grace, request_id)
        ticket = self.arbiter.preempt(asked, self.now)
        self.collect()
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """The caller of a preemption goes away."""
        self.arbiter.withdraw(ticket, self.now)
        self.collect()

    def ack(self, lease: Lease, *, done: bool = True, freed: float = 0.0) -> None:
        """A holder answers the order that it has: that it has given, or what so far."""
        assert lease.reclaim is not None
        acks = (ReclaimAck(reclaim_id=lease.reclaim.reclaim_id, freed_bytes=gib(freed), done=done),)
        assert self.report(lease, ReportOutcome.NONE, revision=0, acks=acks).verdict is Verdict.RENEWED

    def apply(self, *leases: Lease) -> None:
        """The holders have applied the newest directives."""
        for lease in leases:
            assert self.report(lease).verdict is Verdict.RENEWED

    def sample(
        self,
        held: Mapping[int, float | None],
        *,
        foreign: float | None = 0.0,
        used: float | None = None,
        taken_at: float | None = None,
        available: float | None = None,
        lost: bool = False,
        name: str = "gpu",
        guests: Mapping[int, float] | None = None,
        guests_count: bool = True,
    ) -> None:
        """A sample in GiB by process id; foreign use is said to be 0 unless told otherwise.

        ``guests`` are processes that ask for a lease; where they count, ``foreign`` has to contain what they hold.
        """
        sample = DeviceSample(
            DeviceId(name),
            used_bytes=None if used is None else gib(used),
            held_bytes={process(pid): None if size is None else gib(size) for pid, size in held.items()},
            foreign_bytes=None if foreign is None else gib(foreign),
            machine_available_bytes=None if available is None else gib(available),
            lost=lost,
            guests={
                process(pid): Guest(gib(size), gib(size) if guests_count else 0) for pid, size in (guests or {}).items()
            },
        )
        self.arbiter.observe(sample, self.now if taken_at is None else taken_at, self.now)
        self.collect()

    def exit(self, pid: int) -> None:
        """A process exits."""
        self.arbiter.process_exited(process(pid), self.now)
        self.collect()

    # Effects ----------------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Takes the effects of the last command, and proves the books."""
        for effect in self.arbiter.take_effects():
            self.effects.append(effect)
            if isinstance(effect, effects.Granted | effects.Refused):
                self.outcomes.setdefault(effect.ticket, []).append(effect)
            elif isinstance(effect, effects.PlanClosed):
                assert effect.ticket not in self.closed
                self.closed[effect.ticket] = effect
        self.arbiter.check()

    def plan_of(self, ticket: Ticket) -> Plan:
        """The preemption that a ticket has led to, when it has ended."""
        plan = self.closed[ticket].plan
        assert isinstance(plan, Plan)
        return plan

    def granted(self, ticket: Ticket) -> effects.Granted:
        """The grant of a ticket."""
        (outcome,) = self.outcomes[ticket]
        assert isinstance(outcome, effects.Granted), outcome
        return outcome

    def lease(self, ticket: Ticket) -> Lease:
        """The lease of a ticket."""
        return self.granted(ticket).lease

    def error(self, ticket: Ticket) -> ArbiterError:
        """The refusal of a ticket."""
        (outcome,) = self.outcomes[ticket]
        assert isinstance(outcome, effects.Refused), outcome
        return outcome.error

    def waits(self, ticket: Ticket) -> bool:
        """Whether a ticket has no answer yet."""
        return ticket not in self.outcomes and self.books.queue.of(ticket) is not None

    def told(self, lease: Lease) -> int:
        """How many directives a lease has been sent after its first."""
        return sum(isinstance(each, effects.DirectiveChanged) and each.lease is lease for each in self.effects)

    def drained(self, lease: Lease) -> bool:
        """Whether the bytes of a lease are gone."""
        return any(isinstance(each, effects.Drained) and each.lease is lease for each in self.effects)

    def events(self, kind: EventKind, lease_id: LeaseId | None = None) -> list[effects.Happened]:
        """The events of a kind, of one lease or of all."""
        return [
            each
            for each in self.effects
            if isinstance(each, effects.Happened) and each.kind is kind and lease_id in (None, each.lease_id)
        ]


#: Makes a desk with a configuration of its own.
DeskMaker = Callable[[ArbiterConfig], Desk]


def qualities(leases: Iterable[Lease]) -> list[float]:
    """What the leases were told, as people write it."""
    return [round(lease.quality, 4) for lease in leases]


def state_of(lease: Lease) -> LeaseState:
    """The state of a lease; a call, so that type checkers do not take it to stay as it is."""
    return lease.state
