"""A lease that uses clearly more than it leased is told less, then asked to give the excess back, then revoked.

Only what is measured counts. Whoever comes back within the slack is left alone at once and rises again like everybody.
"""

from __future__ import annotations

from arbiter_sidecar.arbiter import preempting, publishing
from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.leases import Lease, Overuse
from arbiter_sidecar.ledger.plans import Donation
from arbiter_sidecar.policy.publication import Published
from arbiter_sidecar.types import DeviceHealth, DirectiveReason, EndReason, EventKind


def look(books: Books, device: DeviceBook, now: float) -> None:
    """Compares what a sample has shown with what was leased."""
    config = books.config.overuse
    for lease in device.live.values():
        if lease.overrun_bytes <= config.slack_bytes:
            lease.over_since = None
            if lease.overuse is not None:
                _forget(books, device, lease, lease.overuse)
        elif lease.over_since is None:
            lease.over_since = now
        elif lease.overuse is None and now - lease.over_since >= config.found_s:
            _find(books, device, lease, now)


def _find(books: Books, device: DeviceBook, lease: Lease, now: float) -> None:
    """The first step: it is told as much less as it uses more, as far as it can go."""
    excess, config = lease.overrun_bytes, books.config.overuse
    limit = max(lease.elastic.floor_bytes, lease.limit_bytes - excess)
    lowered = min(lease.quality, preempting.quality_within(lease, limit))
    lease.overuse = Overuse(highest_quality=lowered, due=now + config.patience_s)
    books.accounts.of(lease.request.namespace, lease.request.holder).overuses += 1
    books.happened(
        EventKind.OVERUSE_FOUND,
        lease,
        measured_bytes=lease.measured_bytes,
        charged_bytes=lease.charged_bytes,
        slack_bytes=config.slack_bytes,
        quality=round(lowered, 4),
    )
    if books.config.observe_only:
        return
    if lowered < lease.quality and lease.reclaim is None:
        publishing.tell(books, device, lease, Published(lowered), now, DirectiveReason.OVERUSE)
    books.later(lease.overuse.due, "overuse", lease)


def _forget(books: Books, device: DeviceBook, lease: Lease, overuse: Overuse) -> None:
    lease.overuse = None
    books.happened(EventKind.OVERUSE_ENDED, lease, measured_bytes=lease.measured_bytes)
    if overuse.order is not None and lease.reclaim is overuse.order:
        device.demand(lease, None)
        books.announce(lease, DirectiveReason.OVERUSE)


def go_on(books: Books, lease: Lease, now: float) -> None:
    """Takes the next step about a lease whose overuse goes on."""
    overuse, device = lease.overuse, books.device_of(lease)
    if overuse is None or not lease.alive:
        return
    if overuse.due <= now:
        overuse.due = now + books.config.overuse.patience_s
        if overuse.order is None:
            # One that a preemption asks already has enough to answer; its turn comes.
            if lease.reclaim is None:
                _order(books, device, lease, overuse, now)
        elif books.config.overuse.revoke and device.health(now) is DeviceHealth.OK:
            books.end(lease, EndReason.REVOKED, now)
            return
    books.later(overuse.due, "overuse", lease)


def _order(books: Books, device: DeviceBook, lease: Lease, overuse: Overuse, now: float) -> None:
    """The second step: an order to give the excess back."""
    grace_s, excess = books.config.preemption.grace_s, lease.overrun_bytes
    books.overuse_orders += 1
    reclaim_id = f"overuse-{books.epoch}-{books.overuse_orders}"
    overuse.order = Donation(
        reclaim_id=reclaim_id, lease=lease, planned_bytes=excess, whole=False, now=now, grace_s=grace_s
    )
    overuse.due = now + grace_s
    device.demand(lease, overuse.order)
    books.announce(lease, DirectiveReason.OVERUSE)
    books.accounts.of(lease.request.namespace, lease.request.holder).reclaims += 1
    books.happened(
        EventKind.RECLAIM_REQUESTED,
        lease,
        plan_id="",
        reclaim_id=reclaim_id,
        memory_bytes=excess,
        whole=False,
        grace_s=grace_s,
    )
