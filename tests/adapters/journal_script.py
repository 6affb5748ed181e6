"""What a test has the journal keep: records, endless stories of operations, and what must be known after each."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

from arbiter_sidecar.adapters.journal_rows import FENCE_BLOCK, MAX_EVENTS
from arbiter_sidecar.ports import (
    DonationRecord,
    EventHappened,
    EventRecord,
    GraveRecord,
    JournalOperation,
    LeaseConfirmed,
    LeaseDrained,
    LeaseEnded,
    LeaseOpened,
    LeaseRecord,
    LeaseResized,
    PlanEnded,
    PlanOpened,
    PlanRecord,
    Recovered,
)
from arbiter_sidecar.requests import AllocationRequest, KvShare, ShardPlace
from arbiter_sidecar.types import GIB, DeviceId, EndReason, EventKind, LeaseId, Priority, Process, WorkloadType

GPU = DeviceId("GPU-1")
#: Leases of a story that live or drain, at most.
_CROWD = 30


#: A request in which everything has a value, some of them unfriendly.
REQUEST = AllocationRequest(
    holder="worker \u202e \N{SNOWMAN} '\"\n\0",
    workload=WorkloadType.LLM_INFERENCE,
    memory_bytes=3 * GIB,
    namespace="team",
    pids=(41, 42),
    processes=(Process(41, 1 << 40),),
    priority=Priority.HIGH,
    min_memory_bytes=GIB,
    min_quality=0.25,
    max_quality=0.9,
    device_id=GPU,
    ttl_s=7.5,
    wait_s=3.0,
    startup_window_s=60.0,
    preemptible=False,
    may_preempt=True,
    kv=KvShare(share_weight=3, min_tokens=16, max_tokens=None, block_tokens=32),
    shard=ShardPlace(group="model", name="first", position=0, layers=8, bytes_per_layer=100, max_layers=9),
    labels={"colour": "red", "": "empty"},
)


def lease(name: str, fence: int) -> LeaseRecord:
    """A lease of that request, under a request id of its own."""
    return LeaseRecord(
        lease_id=LeaseId(name),
        handle=(1 << 64) - fence,
        fence=fence,
        device_id=GPU,
        request=replace(REQUEST, request_id=f"request of {name}"),
        created_at=1_700_000_000.25,
        quality=1.0,
        limit_bytes=3 * GIB,
        charged_bytes=3 * GIB,
    )


def opened(name: str, fence: int) -> LeaseOpened:
    """It was granted."""
    return LeaseOpened(lease(name, fence))


def resized(name: str, size: int) -> LeaseResized:
    """It was told so many bytes."""
    return LeaseResized(lease_id=LeaseId(name), quality=0.5, limit_bytes=size, charged_bytes=size + 1)


def ended(name: str, reason: EndReason = EndReason.RELEASED) -> LeaseEnded:
    """It is over."""
    return LeaseEnded(lease_id=LeaseId(name), reason=reason, ended_at=1_700_000_001.5, residue_bytes=GIB)


def drained(name: str) -> LeaseDrained:
    """Its bytes are gone."""
    return LeaseDrained(LeaseId(name), 1_700_000_002.5)


def plan(name: str, *donors: str) -> PlanRecord:
    """A preemption that asks these leases."""
    donations = tuple(
        DonationRecord(reclaim_id=f"{name}/{donor}", lease_id=LeaseId(donor), planned=7, whole=True) for donor in donors
    )
    return PlanRecord(
        plan_id=name, device_id=GPU, priority=Priority.CRITICAL, need=9, opened_at=5.0, tokens=True, donations=donations
    )


def happened(sequence: int) -> EventHappened:
    """An audit event."""
    record = EventRecord(
        sequence=sequence,
        wall_time=1_700_000_000.0 + sequence,
        kind=EventKind.LEASE_GRANTED,
        lease_id="lease",
        request_id="request",
        device_id=GPU,
        holder="holder",
        namespace="team",
        fields={"reason": "none"},
    )
    return EventHappened(record)


class Known:
    """What must be known after a story, said without a file."""

    def __init__(self, before: Recovered) -> None:
        self.leases = {lease.lease_id: lease for lease in before.leases}
        self.graves = list(before.graves)
        self.requests = dict(before.requests)
        self.fences = dict(before.fences)
        self.plans = {plan.plan_id: plan for plan in before.plans}
        self.events = {event.sequence: event for event in before.events}

    def take(self, operations: Iterable[JournalOperation]) -> None:
        """What was said in one breath."""
        for operation in operations:
            self._take(operation)

    def _take(self, operation: JournalOperation) -> None:
        match operation:
            case LeaseOpened(lease):
                self.leases[lease.lease_id] = lease
                self.requests[lease.request.namespace, lease.request.request_id] = lease.lease_id
                if lease.fence > self.fences.get(lease.device_id, 0):
                    self.fences[lease.device_id] = lease.fence + FENCE_BLOCK - 1
            case LeaseConfirmed(lease_id):
                self._change(lease_id, confirmed=True)
            case LeaseResized():
                self._resize(operation)
            case LeaseEnded():
                self._end(operation)
            case LeaseDrained(lease_id, at):
                self._bury(lease_id, at)
            case PlanOpened(plan):
                self.plans.pop(plan.plan_id, None)
                self.plans[plan.plan_id] = plan
            case PlanEnded(plan_id):
                self.plans.pop(plan_id, None)
            case EventHappened(event):
                self.events.pop(event.sequence, None)
                self.events[event.sequence] = event

    def _change(self, lease_id: LeaseId, *, confirmed: bool) -> None:
        if (lease := self.leases.get(lease_id)) is not None and lease.end_reason is EndReason.NONE:
            self.leases[lease_id] = replace(lease, confirmed=confirmed)

    def _resize(self, resized: LeaseResized) -> None:
        if (lease := self.leases.get(resized.lease_id)) is not None and lease.end_reason is EndReason.NONE:
            self.leases[resized.lease_id] = replace(
                lease,
                quality=resized.quality,
                limit_bytes=resized.limit_bytes,
                charged_bytes=resized.charged_bytes,
                credit_bytes=resized.credit_bytes,
                kv_budget=resized.kv_budget,
                kv_charged=resized.kv_charged,
            )

    def _end(self, ended: LeaseEnded) -> None:
        if (lease := self.leases.get(ended.lease_id)) is not None and lease.end_reason is EndReason.NONE:
            self.leases[ended.lease_id] = replace(
                lease, end_reason=ended.reason, ended_at=ended.ended_at, residue_bytes=ended.residue_bytes
            )

    def _bury(self, lease_id: LeaseId, at: float) -> None:
        if (lease := self.leases.get(lease_id)) is None or lease.end_reason is EndReason.NONE:
            return
        del self.leases[lease_id]
        self.requests = {key: value for key, value in self.requests.items() if value != lease_id}
        self.graves.append(
            GraveRecord(
                lease_id=lease_id,
                handle=lease.handle,
                fence=lease.fence,
                device_id=lease.device_id,
                namespace=lease.request.namespace,
                end_reason=lease.end_reason,
                drained_at=at,
            )
        )

    def is_what(self, recovered: Recovered) -> bool:
        """Whether the journal knows exactly this."""
        return (
            list(self.leases.values()) == list(recovered.leases)
            and self.graves == list(recovered.graves)
            and self.requests == recovered.requests
            and self.fences == recovered.fences
            and list(self.plans.values()) == list(recovered.plans)
            and list(self.events.values())[-MAX_EVENTS:] == list(recovered.events)
        )


def story(seed: int, before: Recovered) -> Iterator[list[JournalOperation]]:
    """What happens from here on, without end: the same for the same seed and the same beginning."""
    chance = random.Random(seed)
    living = [str(lease.lease_id) for lease in before.leases if lease.end_reason is EndReason.NONE]
    over = [str(lease.lease_id) for lease in before.leases if lease.end_reason is not EndReason.NONE]
    fence = max(before.fences.values(), default=0)
    number = before.events[-1].sequence if before.events else 0
    while True:
        number += 1
        breath: list[JournalOperation] = []
        what = chance.random()
        if not living or (what < 0.4 and len(living) + len(over) < _CROWD):
            fence += chance.randint(1, 400)
            living.append(f"{seed}-{number}")
            breath += [opened(living[-1], fence), happened(number), resized(chance.choice(living), number)]
        elif what < 0.6:
            breath += [resized(chance.choice(living), number)]
        elif what < 0.7:
            breath += [LeaseConfirmed(LeaseId(chance.choice(living)))]
        elif what < 0.8:
            breath += [PlanOpened(plan(f"plan {chance.randint(1, 3)}", *living[:2])), resized(living[0], number)]
        elif what < 0.85:
            breath += [PlanEnded(f"plan {chance.randint(1, 3)}")]
        elif what < 0.91 or not over:
            over.append(living.pop(chance.randrange(len(living))))
            breath += [ended(over[-1], chance.choice((EndReason.EXPIRED, EndReason.PREEMPTED))), happened(number)]
        else:
            breath += [drained(over.pop(chance.randrange(len(over)))), happened(number)]
        yield breath
