"""The book of leases: who holds which authority, by which names it is found, and when it must next be looked at.

Ending a lease here ends authority only; its bytes stay in the device's book until they are measured gone.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from arbiter_sidecar.ledger.kv import KvState
from arbiter_sidecar.policy.publication import Published
from arbiter_sidecar.policy.quality import Elastic
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import DeviceId, DirectiveReason, EndReason, LeaseId, LeaseState, Process

if TYPE_CHECKING:
    from arbiter_sidecar.ledger.plans import Donation
    from arbiter_sidecar.ledger.shards import ShardRecord

#: Missed share of the time to live after which a lease is suspect: one and a half heartbeat intervals of a third each.
SUSPECT_SHARE = 0.5
#: Donations of one lease that are remembered; more than any window may hold.
MAX_DONATIONS = 16
#: How long a lease that has gone is remembered: longer than any sensible retry of its holder.
GRAVE_LIFE_S = 600.0
#: How many of them at most: a megabyte or two.
MAX_GRAVES = 20_000
#: How many entries of leases that have ended the queue of attention may hold beyond one for each that lives.
SPARE_ENTRIES = 64


class Lease:
    """One lease, alive or draining. Written by the ledgers and the core only; others read it.

    Attributes:
        elastic: Its shape under the present policy.
        published: What it was told, and since when it could be told more.
        limit_bytes: Bytes at the published quality.
        charged_bytes: Bytes the books hold for it; above ``limit_bytes`` until a reduction is confirmed.
        measured_bytes: Bytes its processes hold; ``None`` when unknown.
        reclaim: An open order to give memory back.
        kv: What is known of it as a KV engine; ``None`` when it is none.
        shard: The shard of a split model that it serves; ``None`` when it serves none, or another lease does by now.
        credit_bytes: Bytes that preemption has added to what was asked for.
        donated_at: When it was asked to give.
        spared_until: Until when it is left in peace after giving.
        wake_cost_s: Seconds it took to come back after it had given; 0 before it was measured.
        waking_since: When it was told to come back; ``None`` when it is not on its way.
        over_since: Since when each sample has shown more than it leased, and not by a little; ``None`` when none does.
        overuse: That it uses clearly more than it leased, and what was done about it; ``None`` when it does not.
        advised: The quality it would be told if the arbiter did more than observe.
        told_at: When it was last told another limit, monotonic seconds.
        measured_at: When the measuring that found ``measured_bytes`` began, monotonic seconds.
        starting_until: Until when it may start up undisturbed; 0 when it announced nothing.
        settled_at: Up to when the quality it lost, or the bytes it kept, stand in its holder's account.
        measured_over: It was above its limit when it was told that or since, so that a fall proves compliance.
        exited: Which of its processes have exited.
        delivered: Somebody has received it.
        deadline: End without another heartbeat, monotonic seconds.
        refused_floor: Quality below which it refused to go; ``None`` when it did not.
        zero_samples: Consecutive samples that showed nothing after the end.
    """

    __slots__ = (
        "advised",
        "applied_revision",
        "charged_bytes",
        "confirmed",
        "created_at",
        "credit_bytes",
        "deadline",
        "delivered",
        "device_id",
        "directive_reason",
        "donated_at",
        "elastic",
        "end_reason",
        "ended_at",
        "exited",
        "fence",
        "handle",
        "kv",
        "last_beat",
        "lease_id",
        "limit_bytes",
        "measured_at",
        "measured_bytes",
        "measured_over",
        "over_since",
        "overuse",
        "planned_at_end",
        "published",
        "quiet_until",
        "reclaim",
        "refused_floor",
        "refused_until",
        "reported_bytes",
        "request",
        "residue_alarmed",
        "residue_bytes",
        "revision",
        "settled_at",
        "shard",
        "spared_until",
        "starting_until",
        "suspect",
        "told_at",
        "ttl_s",
        "wake_cost_s",
        "waking_since",
        "zero_samples",
        "zero_since",
    )

    def __init__(
        self, *, lease_id: LeaseId, handle: int, fence: int, device_id: DeviceId, request: AllocationRequest, now: float
    ) -> None:
        self.lease_id = lease_id
        self.handle = handle
        self.fence = fence
        self.device_id = device_id
        self.request = request
        self.ttl_s = request.ttl_s
        self.created_at = now
        self.last_beat = now
        self.quiet_until = now + request.startup_window_s
        self.deadline = max(now + request.ttl_s, self.quiet_until)
        self.confirmed = False
        self.delivered = False
        self.suspect = False
        self.end_reason = EndReason.NONE
        self.ended_at = 0.0
        self.exited: frozenset[Process] = frozenset()
        self.elastic = Elastic(full_bytes=0, floor_bytes=0, min_quality=0.0, max_quality=1.0, weight=1.0)
        self.published = Published(1.0)
        self.limit_bytes = 0
        self.charged_bytes = 0
        self.measured_bytes: int | None = None
        self.measured_over = False
        self.reported_bytes: int | None = None
        self.kv = KvState(request.kv) if request.kv is not None else None
        self.shard: ShardRecord | None = None
        self.revision = 0
        self.applied_revision = 0
        self.directive_reason = DirectiveReason.GRANT
        self.refused_floor: float | None = None
        self.refused_until = 0.0
        self.reclaim: Donation | None = None
        self.credit_bytes = 0
        self.donated_at: deque[float] = deque(maxlen=MAX_DONATIONS)
        self.spared_until = 0.0
        self.wake_cost_s = 0.0
        self.waking_since: float | None = None
        self.over_since: float | None = None
        self.overuse: Overuse | None = None
        self.advised: float | None = None
        self.told_at = now
        self.measured_at = -math.inf
        self.starting_until = 0.0
        self.settled_at = now
        self.residue_bytes = 0
        self.planned_at_end = 0
        self.residue_alarmed = False
        self.zero_samples = 0
        self.zero_since = 0.0

    @property
    def alive(self) -> bool:
        """Whether the authority holds."""
        return self.end_reason is EndReason.NONE

    @property
    def leaving(self) -> bool:
        """Whether it is wanted as a whole: nobody plans with it any more."""
        return self.reclaim is not None and self.reclaim.whole

    @property
    def highest_quality(self) -> float:
        """What it may be told at most: its own best, and less for one that uses more than it leased."""
        best = self.elastic.max_quality
        return best if self.overuse is None else min(best, self.overuse.highest_quality)

    @property
    def overrun_bytes(self) -> int:
        """What it was measured to use beyond what it is charged; 0 where its use is unknown."""
        return 0 if self.measured_bytes is None else max(0, self.measured_bytes - self.charged_bytes)

    @property
    def state(self) -> LeaseState:
        """Authority, in one word."""
        if not self.alive:
            return LeaseState.ENDED
        if not self.confirmed:
            return LeaseState.GRANTED
        if self.reclaim is not None:
            return LeaseState.RECLAIMING
        return LeaseState.SUSPECT if self.suspect else LeaseState.ACTIVE

    @property
    def quality(self) -> float:
        """The published quality."""
        return self.published.quality

    @property
    def accounted_bytes(self) -> int:
        """What must be taken to be on the device: the larger of promised and measured, or the residue after the end."""
        if not self.alive:
            return self.residue_bytes
        return max(self.charged_bytes, self.measured_bytes or 0)

    @property
    def present_bytes(self) -> int:
        """What is believed to be on the device now: what was measured, else what must be taken to be there."""
        return self.accounted_bytes if self.measured_bytes is None else self.measured_bytes

    @property
    def ghost(self) -> bool:
        """Whether it still holds bytes too long after its end although its processes live, or some of them."""
        return self.residue_alarmed and not self.exited.issuperset(self.request.processes)

    @property
    def zombie(self) -> bool:
        """Whether it still holds bytes too long after its end although no process of it is left."""
        return self.residue_alarmed and not self.ghost

    @property
    def unused_bytes(self) -> int:
        """What it is charged and does not use; 0 where its use is unknown."""
        return 0 if self.measured_bytes is None else max(0, self.charged_bytes - self.measured_bytes)

    @property
    def attention_at(self) -> float:
        """When it must next be looked at: to become suspect, or to end."""
        if self.suspect:
            return self.deadline
        return max(self.last_beat + SUSPECT_SHARE * self.ttl_s, min(self.quiet_until, self.deadline))


class Overuse:
    """What is done about a lease that uses clearly more than it leased: told less, then asked to give, then revoked.

    Attributes:
        highest_quality: What it is told at most meanwhile.
        order: The order to give back what it uses beyond its lease; ``None`` before there was one.
        due: When the next step is taken, monotonic seconds.
    """

    __slots__ = ("due", "highest_quality", "order")

    def __init__(self, *, highest_quality: float, due: float) -> None:
        self.highest_quality = highest_quality
        self.order: Donation | None = None
        self.due = due

    def delay(self, seconds: float) -> None:
        """Moves its deadlines into the future, because the arbiter itself had been away."""
        self.due += seconds
        if self.order is not None:
            self.order.delay(seconds)


class Grave(NamedTuple):
    """What is remembered of a lease after its bytes are gone, so that late callers hear the truth."""

    lease_id: LeaseId
    handle: int
    fence: int
    namespace: str
    end_reason: EndReason
    buried_at: float


class LeaseBook:
    """All leases that live or drain, found by id, handle and process; and for a while those that have gone."""

    def __init__(self, *, first_fence: int) -> None:
        self._by_id: dict[LeaseId, Lease] = {}
        self._by_handle: dict[int, Lease] = {}
        self._by_process: dict[Process, list[Lease]] = {}
        self._attention: list[tuple[float, int, Lease]] = []
        self._graves: OrderedDict[LeaseId, Grave] = OrderedDict()
        self._graves_by_handle: dict[int, Grave] = {}
        self._fences: dict[DeviceId, int] = {}
        self._first_fence = first_fence
        self._live = 0
        self._added = 0

    def __len__(self) -> int:
        return self._live

    @property
    def total(self) -> int:
        """How many leases live or drain."""
        return len(self._by_id)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._by_id.values())

    def get(self, lease_id: str) -> Lease | None:
        """The lease of this id, alive or draining."""
        return self._by_id.get(LeaseId(lease_id))

    def by_handle(self, handle: int) -> Lease | None:
        """The lease of this handle, alive or draining."""
        return self._by_handle.get(handle)

    def holding(self, process: Process) -> tuple[Lease, ...]:
        """The leases that name this process, oldest first."""
        return tuple(self._by_process.get(process, ()))

    def next_fence(self, device_id: DeviceId) -> int:
        """A fence above every earlier one of the device."""
        fence = self._fences.get(device_id, self._first_fence) + 1
        self._fences[device_id] = fence
        return fence

    def add(self, lease: Lease) -> None:
        """Enters a new lease under all its names."""
        self._by_id[lease.lease_id] = lease
        self._by_handle[lease.handle] = lease
        for process in lease.request.processes:
            self._by_process.setdefault(process, []).append(lease)
        # The running number breaks ties of time, so that leases themselves are never compared.
        self._added += 1
        heapq.heappush(self._attention, (lease.attention_at, self._added, lease))
        self._live += 1
        if len(self._attention) > 2 * self._live + SPARE_ENTRIES:
            # Leases that come and go quickly would otherwise fill it until their first deadlines.
            self._attention = [entry for entry in self._attention if entry[2].alive]
            heapq.heapify(self._attention)

    def end(self, lease: Lease, reason: EndReason, now: float) -> None:
        """Ends the authority. The lease stays in the book until it is forgotten."""
        lease.end_reason = reason
        lease.ended_at = now
        self._live -= 1

    def forget(self, lease: Lease, now: float) -> None:
        """Buries an ended lease whose bytes are gone; old graves make room."""
        del self._by_id[lease.lease_id]
        del self._by_handle[lease.handle]
        for process in lease.request.processes:
            held = self._by_process[process]
            held.remove(lease)
            if not held:
                del self._by_process[process]
        grave = Grave(lease.lease_id, lease.handle, lease.fence, lease.request.namespace, lease.end_reason, now)
        self._graves[lease.lease_id] = self._graves_by_handle[lease.handle] = grave
        # The new one is young enough, so there always is an oldest.
        oldest = next(iter(self._graves.values()))
        while len(self._graves) > MAX_GRAVES or now - oldest.buried_at > GRAVE_LIFE_S:
            del self._graves[oldest.lease_id]
            del self._graves_by_handle[oldest.handle]
            oldest = next(iter(self._graves.values()))

    def grave(self, lease_id: str) -> Grave | None:
        """What is remembered of a lease that has gone."""
        return self._graves.get(LeaseId(lease_id))

    def grave_by_handle(self, handle: int) -> Grave | None:
        """The same, by handle."""
        return self._graves_by_handle.get(handle)

    def next_attention(self) -> float | None:
        """When the next lease may need a look; may be early, never late."""
        return self._attention[0][0] if self._attention else None

    def due(self, now: float) -> Lease | None:
        """A lease that really needs a look by ``now``.

        Entries are corrected only when they surface, so that a renewal is one store and touches no queue.
        """
        while self._attention and self._attention[0][0] <= now:
            _, order, lease = self._attention[0]
            if not lease.alive:
                heapq.heappop(self._attention)
            elif lease.attention_at > now:
                heapq.heapreplace(self._attention, (lease.attention_at, order, lease))
            else:
                return lease
        return None

    def delay(self, seconds: float) -> None:
        """Moves every deadline into the future, because the arbiter itself had been away."""
        for lease in self._by_id.values():
            if lease.alive:
                lease.deadline += seconds
                lease.last_beat += seconds
                lease.quiet_until += seconds
                lease.starting_until += seconds
                if lease.overuse is not None:
                    lease.overuse.delay(seconds)

    def check(self) -> None:
        """Raises ``AssertionError`` where the book contradicts itself."""
        assert self._live == sum(lease.alive for lease in self._by_id.values())
        assert len(self._by_handle) == len(self._by_id)
        assert all(self._by_handle[lease.handle] is lease for lease in self._by_id.values())
        queued = {id(lease) for _, _, lease in self._attention}
        assert len(queued) == len(self._attention), "one entry for each lease"
        assert all(id(lease) in queued for lease in self._by_id.values() if lease.alive)
        fences = [(lease.device_id, lease.fence) for lease in self._by_id.values()]
        assert len(set(fences)) == len(fences), "one lease for each fence of a device"
        named = [(process, id(lease)) for process, held in self._by_process.items() for lease in held]
        assert len(named) == sum(len(lease.request.processes) for lease in self._by_id.values())
