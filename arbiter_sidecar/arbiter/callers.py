"""Callers who want something taken from others: who they are, and how they hear what came of it."""

from __future__ import annotations

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import effects
from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.plans import Asked
from arbiter_sidecar.requests import PreemptionRequest
from arbiter_sidecar.types import Priority


def requester_of(books: Books, asked: PreemptionRequest, now: float) -> tuple[Lease | None, DeviceBook, Priority]:
    """The lease that asks, if one does; the device; the priority with which it asks.

    Raises:
        LeaseNotFound: The lease is unknown or has ended.
        DeviceNotFound: There is no such device.
        InvalidRequest: Neither lease nor device is named, the lease is elsewhere, or the priority is above the lease's.
    """
    requester = None
    if asked.lease_id:
        requester = books.leases.get(asked.lease_id)
        if requester is None or not requester.alive or requester.deadline <= now:
            raise errors.LeaseNotFound(f"no living lease {asked.lease_id!r}", lease_id=asked.lease_id)
    device_id = asked.device_id or (requester.device_id if requester is not None else "")
    if not device_id:
        raise errors.InvalidRequest([("device_id", "is required without a lease_id")])
    device = next((each for each in books.devices.values() if each.device_id == device_id), None)
    if device is None:
        raise errors.DeviceNotFound(device_id=device_id)
    own = requester.request.priority if requester is not None else Priority.NORMAL
    if requester is not None and requester.device_id != device_id:
        raise errors.InvalidRequest([("device_id", f"the lease is on {requester.device_id}")])
    if requester is not None and asked.priority is not None and asked.priority > own:
        raise errors.InvalidRequest([("priority", f"is above that of the lease, {own.name}")])
    return requester, device, own if asked.priority is None else asked.priority


def answer(books: Books, asked: Asked, error: errors.ArbiterError | None, now: float) -> None:
    """Tells everybody who asked what came of it, and keeps that for those who ask again."""
    asked.error, asked.closed_at = error, now
    books.pending.extend(effects.PlanClosed(ticket, asked.plan, error) for ticket in asked.tickets)
    asked.tickets.clear()
