"""What was put on the agenda, when its time has come."""

from __future__ import annotations

from arbiter_sidecar.arbiter import asking, kv, kv_lending, overuse, preempting, shards
from arbiter_sidecar.arbiter.books import Books, Errand, Subject
from arbiter_sidecar.arbiter.renewal import Renewals
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.kv import KvPlan, WaitingReservation
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.plans import Asked, Plan
from arbiter_sidecar.types import EventKind


def run(books: Books, renewals: Renewals, name: Errand, subject: Subject, now: float) -> DeviceBook:
    """Does one errand; returns the device it is about. One whose subject has gone meanwhile does nothing."""
    device = books.devices[subject.device_id]
    if isinstance(subject, Lease):
        if books.leases.get(subject.lease_id) is not None:
            _lease(books, renewals, name, subject, now)
    elif isinstance(subject, Plan):
        _plan(books, device, name, subject, now)
    elif isinstance(subject, KvPlan):
        if device.kv.plan is subject:
            kv_lending.collect(books, device, subject, now)
    elif isinstance(subject, Asked):
        asking.time_out(books, subject, now)
    elif isinstance(subject, WaitingReservation):
        kv.give_up(books, subject, now)
    else:
        kv.expire(books, device, now)
    return device


def _lease(books: Books, renewals: Renewals, name: Errand, lease: Lease, now: float) -> None:
    if name == "unlock" and not books.device_of(lease).traceable(lease):
        books.bury(lease, now)
    elif name == "forgive":
        renewals.forgive(lease, now)
    elif name == "unfence":
        device = books.device_of(lease)
        if device.fenced_by(now) is lease:
            # The arbiter was away meanwhile: it has so much longer.
            books.later(device.fence_ends(lease), "unfence", lease)
    elif name == "kv":
        kv.go_on(books, lease, now)
    elif name == "shard":
        shards.watch(books, lease, now)
    elif name == "overuse":
        overuse.go_on(books, lease, now)
    elif name == "alarm":
        books.settle(lease, now)
        lease.residue_alarmed = True
        books.happened(EventKind.RESIDUE_ALARM, lease, residue_bytes=lease.residue_bytes)


def _plan(books: Books, device: DeviceBook, name: Errand, plan: Plan, now: float) -> None:
    # What came free in this very moment counts.
    preempting.follow(books, device, now)
    if device.plan is not plan:
        return
    if name == "press":
        preempting.press(books, plan, now)
    elif name == "collect":
        preempting.collect(books, plan, now)
    elif plan.deadline <= now:
        preempting.close(books, plan, now)
