"""Everything the core knows, in one place, and the few things that are done from several sides."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from arbiter_sidecar.arbiter import effects
from arbiter_sidecar.errors import ArbiterError, Fenced, LeaseNotFound
from arbiter_sidecar.ledger.accounts import Accounts
from arbiter_sidecar.ledger.devices import DeviceBook, DeviceRules
from arbiter_sidecar.ledger.kv import KvPlan, Reservation, WaitingReservation
from arbiter_sidecar.ledger.leases import Lease, LeaseBook
from arbiter_sidecar.ledger.plans import Asked, AskedLine, Plan
from arbiter_sidecar.ledger.shards import ShardBook
from arbiter_sidecar.ledger.statistics import Statistics
from arbiter_sidecar.ledger.waiting import AdmissionQueue, Waiter
from arbiter_sidecar.policy import kv_budget, preemption, quality, ranking
from arbiter_sidecar.policy.balance import Settings as BalanceSettings
from arbiter_sidecar.policy.quality import Elastic, QualityPolicy
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import MIB, DeviceId, DirectiveReason, EndReason, EventKind, Ticket, WorkloadType

#: Fences of one epoch start above those of the one before; so many leases fit into one epoch.
FENCES_PER_EPOCH = 1 << 32

#: What can be put on the agenda. Of a lease: look whether it still holds bytes after its end, let bytes go that cannot
#: be traced, ask again for a quality that was refused, let others in when it has had time to start up, go one step
#: further because it uses more than it leased, look whether a shard has missed a heartbeat. Of a preemption: press the
#: silent, call in, end it. Of a request for one: end its wait.
Errand = Literal[
    "alarm", "unlock", "forgive", "unfence", "overuse", "press", "collect", "close", "unask", "kv", "shard"
]
#: What an errand is about. Of KV tokens: order an engine to free what it keeps beyond its budget, and press it; end the
#: wait for a reservation, an abandoned reservation, a round of lending.
Subject = Lease | Plan | Asked | WaitingReservation | Reservation | KvPlan
#: Failed requests whose reason is remembered for those who ask.
MAX_FAILURES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionConfig:
    """How preemption proceeds. Seconds throughout.

    Attributes:
        rules: Whom a plan may ask.
        grace_s: Time from notice to deadline where the request names none.
        settle_s: How long after the last deadline a plan waits for memory to be measured gone.
        cooldown_s: How long a donor is left in peace after its plan has closed.
        turn_s: How long a caller's request waits for its turn while another preemption is under way on the device.
    """

    rules: preemption.Rules = preemption.LEASE_RULES
    grace_s: float = 2.0
    settle_s: float = 10.0
    cooldown_s: float = preemption.COOLDOWN_S
    turn_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OveruseConfig:
    """What is done about a lease that is measured to use clearly more than it leased.

    Attributes:
        slack_bytes: So much more is nobody's fault: contexts, libraries, fragments.
        found_s: For so many seconds every sample must show it: who was told to shrink needs a moment.
        patience_s: Seconds from the finding, with which it is told less, to the order to give the excess back.
        revoke: Whether it is revoked when it has not given that back either.
    """

    slack_bytes: int = 512 * MIB
    found_s: float = 2.0
    patience_s: float = 10.0
    revoke: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class KvConfig:
    """How KV tokens are shared.

    Attributes:
        tokens: KV tokens of each device; ``None``: derived from its capacity.
        engine_cap_permille: Largest share of one engine, in thousandths.
        drain_s: How long an engine may keep more than its budget before it is ordered to free it, seconds.
        reservation_s: When an abandoned reservation returns by itself, seconds.
        max_reservations: Reservations of a device that are open or wait, at most.
    """

    tokens: int | None = None
    engine_cap_permille: int = kv_budget.ENGINE_CAP_PERMILLE
    drain_s: float = 5.0
    reservation_s: float = 900.0
    max_reservations: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig:
    """How the waiting line is ordered.

    Attributes:
        aging_s: Seconds of waiting that count as one tier.
        backfill: How often a blocked head may be passed.
    """

    aging_s: float = ranking.AGING_S
    backfill: int = ranking.BACKFILL


@dataclass(frozen=True, slots=True, kw_only=True)
class ArbiterConfig:
    """How the core decides.

    Attributes:
        policy: Whose quality is taken first.
        soft_target: Share of the capacity to stay under, in (0,1].
        elasticity: Share of its memory that a lease without a declared minimum sheds between quality 1 and 0, by type.
        min_quality: Lowest useful quality where the request names none, by type.
        rules: When measurements are believed and bytes count as gone.
        preemption: How preemption proceeds.
        overuse: What is done about those that use more than they leased.
        kv: How KV tokens are shared.
        balance: When moving layers of a split model is suggested.
        queue: How the waiting line is ordered.
        pause_guard_s: A longer gap between two calls means the arbiter itself was away; 0 turns the guard off.
        refusal_hold_s: How long a refused target is not asked for again.
        max_leases: Leases at most, alive and draining together.
        max_waiting: Waiting requests at most.
        observe_only: Everything is decided and shown, and nothing is done to anybody.
    """

    policy: QualityPolicy = QualityPolicy.ADAPTIVE
    soft_target: float = quality.SOFT_TARGET
    elasticity: Mapping[WorkloadType, float] = field(
        default_factory=lambda: dict.fromkeys(WorkloadType, quality.DEFAULT_ELASTICITY)
    )
    min_quality: Mapping[WorkloadType, float] = field(default_factory=lambda: dict(quality.DEFAULT_MIN_QUALITY))
    rules: DeviceRules = field(default_factory=DeviceRules)
    preemption: PreemptionConfig = field(default_factory=PreemptionConfig)
    overuse: OveruseConfig = field(default_factory=OveruseConfig)
    kv: KvConfig = field(default_factory=KvConfig)
    balance: BalanceSettings = field(default_factory=BalanceSettings)
    queue: QueueConfig = field(default_factory=QueueConfig)
    pause_guard_s: float = 0.75
    refusal_hold_s: float = 30.0
    max_leases: int = 100_000
    max_waiting: int = 10_000
    observe_only: bool = False


@dataclass(frozen=True, slots=True)
class Names:
    """Where new names come from. Randomness stays outside the core.

    Attributes:
        lease_id: Makes an unguessable id.
        handle: Makes an unguessable number in [1, 2^64).
    """

    lease_id: Callable[[], str]
    handle: Callable[[], int]


class Books:
    """The ledgers of one arbiter, its counters, and the effects that have not been carried out yet."""

    def __init__(self, config: ArbiterConfig, *, epoch: int, names: Names, now: float) -> None:
        self.config = config
        self.epoch = epoch
        self.names = names
        self.leases = LeaseBook(first_fence=epoch * FENCES_PER_EPOCH)
        self.devices: dict[DeviceId, DeviceBook] = {}
        self.queue = AdmissionQueue()
        self.by_request: dict[tuple[str, str], Lease | Waiter] = {}
        self.failures: OrderedDict[str, tuple[AllocationRequest, ArbiterError]] = OrderedDict()
        self.stats = Statistics(now)
        self.revision = 0
        self.draining = False
        self.pending: list[effects.Effect] = []
        self.undelivered: dict[Ticket, Lease] = {}
        self.accounts = Accounts()
        self.asks = AskedLine()
        self.plans_begun = 0
        self.overuse_orders = 0
        self.kv_orders = 0
        self.shards = ShardBook()
        #: Reservations that have been returned of late, so that returning one twice is fine.
        self.kv_completed: OrderedDict[str, None] = OrderedDict()
        self._agenda: list[tuple[float, int, Errand, Subject]] = []
        self._errands = 0

    def device_of(self, lease: Lease) -> DeviceBook:
        """The book of the device a lease is on."""
        return self.devices[lease.device_id]

    def holder(self, lease_id: str, fence: int, now: float) -> Lease:
        """The living lease of whoever names its fence.

        Raises:
            LeaseNotFound: No such lease.
            Fenced: The fence is not the lease's, or the lease has ended.
        """
        lease = self.leases.get(lease_id)
        known = lease if lease is not None else self.leases.grave(lease_id)
        if known is None:
            raise LeaseNotFound(f"no lease {lease_id!r}; it may have been forgotten", lease_id=lease_id)
        if known.fence != fence:
            raise Fenced(f"fence {fence} is not that of lease {lease_id!r}", lease_id=lease_id)
        if lease is None or not lease.alive or lease.deadline <= now:
            raise Fenced(f"lease {lease_id!r} has ended", lease_id=lease_id)
        return lease

    def shape(self, request: AllocationRequest, refused_floor: float | None = None) -> Elastic:
        """What the solver sees of a request under the present policy.

        ``refused_floor`` raises the minimum along the same line: the worker said it cannot go lower.
        """
        config = self.config
        named = config.min_quality[request.workload] if request.min_quality is None else request.min_quality
        lowest = min(named, request.max_quality)
        shape = Elastic(
            full_bytes=request.memory_bytes,
            floor_bytes=quality.floor_bytes(
                request.memory_bytes, lowest, request.min_memory_bytes, config.elasticity[request.workload]
            ),
            min_quality=lowest,
            max_quality=request.max_quality,
            weight=quality.weight(config.policy, request.workload, request.priority),
        )
        raised = quality.effective_min(config.policy, max(lowest, refused_floor or 0.0), request.max_quality)
        if raised <= lowest:
            return shape
        return Elastic(
            full_bytes=shape.full_bytes,
            floor_bytes=shape.bytes_at(raised),
            min_quality=raised,
            max_quality=shape.max_quality,
            weight=shape.weight,
        )

    def shape_of(self, lease: Lease) -> Elastic:
        """The shape of a living lease: what was asked for, what it refused to go below, what preemption has added."""
        shape, credit = self.shape(lease.request, lease.refused_floor), lease.credit_bytes
        if not credit:
            return shape
        return replace(shape, full_bytes=shape.full_bytes + credit, floor_bytes=shape.floor_bytes + credit)

    def answer(self, ticket: Ticket, lease: Lease, *, waited_s: float, already_granted: bool) -> None:
        """Gives a caller its lease; the caller has it only when the outside says that it was delivered."""
        self.stats.granted += 1
        self.undelivered[ticket] = lease
        self.pending.append(effects.Granted(ticket, lease, waited_s, already_granted))

    def announce(self, lease: Lease, reason: DirectiveReason) -> None:
        """Gives the lease's directive its revision and has it sent."""
        self.revision += 1
        lease.revision = self.revision
        lease.directive_reason = reason
        self.pending.append(effects.DirectiveChanged(lease))

    def settle(self, lease: Lease, now: float) -> None:
        """Writes up to now what sharing costs into the holder's account: quality of the living, bytes of the ghosts."""
        span, lease.settled_at = now - lease.settled_at, now
        lost = lease.elastic.max_quality - lease.quality if lease.alive else 0.0
        kept = lease.residue_bytes if lease.residue_alarmed else 0
        if lost or kept:
            account = self.accounts.of(lease.request.namespace, lease.request.holder)
            account.quality_seconds_lost += lost * span
            account.ghost_byte_seconds += kept * span

    def end(self, lease: Lease, reason: EndReason, now: float) -> None:
        """Ends a living lease. Its bytes stay charged to it until they are measured gone."""
        self.settle(lease, now)
        device = self.device_of(lease)
        device.close(lease)
        self.leases.end(lease, reason, now)
        self.accounts.close(lease.request.namespace, lease.request.holder)
        if lease.kv is not None:
            for waiting in device.kv.close(lease):
                error = Fenced(f"the lease has ended: {reason.name}", lease_id=lease.lease_id)
                self.pending.append(effects.ReservationRefused(waiting.ticket, error))
        self.shards.leave(lease)
        key = (lease.request.namespace, lease.request.request_id)
        if self.by_request.get(key) is lease:
            del self.by_request[key]
        mean = self.stats.kind(lease.request.workload)
        if mean is not None:
            mean.move(leases=-1, quality=-lease.quality, now=now)
        if device.watched(lease):
            self.later(lease.ended_at + device.rules.drain_grace_s, "alarm", lease)
        if not device.traceable(lease):
            self.later(device.lock_delay_ends(lease), "unlock", lease)
        self.pending.append(effects.Ended(lease))
        self.happened(EventKind.LEASE_ENDED, lease, reason=reason.name, residue_bytes=lease.residue_bytes)

    def bury(self, lease: Lease, now: float) -> None:
        """The bytes of an ended lease are gone."""
        self.settle(lease, now)
        self.device_of(lease).drained(lease)
        self.leases.forget(lease, now)
        self.pending.append(effects.Drained(lease))
        self.happened(EventKind.LEASE_DRAINED, lease, drained_s=round(now - lease.ended_at, 3))

    def later(self, at: float, errand: Errand, subject: Subject) -> None:
        """Puts something on the agenda."""
        self._errands += 1
        heapq.heappush(self._agenda, (at, self._errands, errand, subject))

    def next_errand(self) -> float | None:
        """When the next thing on the agenda is due."""
        return self._agenda[0][0] if self._agenda else None

    def due_errand(self, now: float) -> tuple[Errand, Subject] | None:
        """Takes the next due thing off the agenda."""
        if not self._agenda or self._agenda[0][0] > now:
            return None
        _, _, errand, subject = heapq.heappop(self._agenda)
        return errand, subject

    def happened(self, kind: EventKind, lease: Lease, **fields: object) -> None:
        """Records an audit event about a lease."""
        request = lease.request
        self.event(
            kind,
            lease_id=lease.lease_id,
            request_id=request.request_id,
            device_id=lease.device_id,
            request=request,
            **fields,
        )

    def event(
        self,
        kind: EventKind,
        *,
        lease_id: str = "",
        request_id: str = "",
        device_id: str = "",
        request: AllocationRequest | None = None,
        **fields: object,
    ) -> None:
        """Records an audit event."""
        self.stats.events += 1
        self.pending.append(
            effects.Happened(
                kind=kind,
                lease_id=lease_id,
                request_id=request_id,
                device_id=device_id,
                holder=request.holder if request is not None else "",
                namespace=request.namespace if request is not None else "",
                fields={name: str(value) for name, value in fields.items()},
            )
        )

    def fail(self, waiter: Waiter, error: ArbiterError) -> None:
        """Answers everybody who waited for a request with an error, and remembers why."""
        self.forget_request(waiter)
        self.pending.extend(effects.Refused(ticket, error) for ticket in waiter.tickets)
        self.failures[waiter.name] = (waiter.request, error)
        if len(self.failures) > MAX_FAILURES:
            self.failures.popitem(last=False)
        self.event(
            EventKind.REQUEST_FAILED,
            request_id=waiter.name,
            request=waiter.request,
            device_id=waiter.device_id or "",
            reason=error.reason,
            message=error.message,
        )

    def forget_request(self, waiter: Waiter) -> None:
        """A request that no longer waits no longer answers to its id."""
        key = (waiter.request.namespace, waiter.request.request_id)
        if self.by_request.get(key) is waiter:
            del self.by_request[key]

    def check(self) -> None:
        """Raises ``AssertionError`` where the books contradict themselves or each other."""
        self.leases.check()
        self.queue.check()
        self.shards.check()
        for device in self.devices.values():
            device.check()
            for lease in (*device.live.values(), *device.ended.values()):
                assert self.leases.get(lease.lease_id) is lease
                assert lease.device_id == device.device_id
        assert sum(len(device.live) for device in self.devices.values()) == len(self.leases)
        for lease in self.undelivered.values():
            assert self.leases.get(lease.lease_id) is lease or not lease.alive
        for held in self.by_request.values():
            assert held in self.queue if isinstance(held, Waiter) else held.alive
        stats = self.stats
        outcomes = stats.granted + stats.refused + stats.timed_out + stats.cancelled
        assert stats.requests == outcomes + self.queue.callers, "every request has one outcome"
