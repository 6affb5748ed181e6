"""Tells every lease of a device the quality that the present situation allows, and nothing when nothing changed."""

from __future__ import annotations

from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.policy import publication, quality
from arbiter_sidecar.policy.publication import Published
from arbiter_sidecar.policy.quality import Solution
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import DirectiveReason, EventKind


def solve(
    books: Books, device: DeviceBook, newcomer: AllocationRequest | None, now: float, *, leniently: bool = False
) -> Solution:
    """Everybody's target on a device, the newcomer's last; what that holds already is nobody else's.

    Each promise is rounded up to a whole byte. ``leniently`` leaves room for that: else a lease could be told a
    hundredth less for what rounding had added when somebody else has just gone.
    """
    shapes = [lease.elastic for lease in device.staying]
    if newcomer is not None:
        shapes.append(books.shape(newcomer))
    room = len(shapes) + len(device.ended) if leniently else 0
    return quality.solve(
        shapes,
        capacity_bytes=device.facts.capacity_bytes,
        target_bytes=quality.target_bytes(device.facts.capacity_bytes, books.config.soft_target) + room,
        foreign_bytes=device.elsewhere_bytes(now, device.own(newcomer)),
    )


def at_ease(books: Books, device: DeviceBook, newcomer: AllocationRequest | None, now: float) -> bool:
    """Whether everybody can have their best, which needs no solving."""
    more = 0
    if newcomer is not None:
        shape = books.shape(newcomer)
        more = shape.bytes_at(shape.max_quality)
    target = quality.target_bytes(device.facts.capacity_bytes, books.config.soft_target)
    return device.elsewhere_bytes(now, device.own(newcomer)) + device.demand_bytes + more <= target


def publish(books: Books, device: DeviceBook, now: float) -> int:
    """Brings what the leases of a device were told up to date: falls first, then rises as far as bytes allow.

    While a request waits for reductions nobody rises: the bytes that come free are for it. Nor does anybody rise while
    a lease is starting up and measures what is free.

    Returns:
        Bytes that are missing even with everybody who is there at the minimum; 0 where they fit.
    """
    device.next_step, device.starved = None, False
    if device.below_best == 0 and at_ease(books, device, device.candidate, now):
        return 0
    solution = solve(books, device, device.candidate, now, leniently=True)
    rising = []
    for lease, exact in zip(device.staying, solution.targets, strict=False):
        target = publication.quantise(exact, minimum=lease.elastic.min_quality, maximum=lease.elastic.max_quality)
        target = min(target, lease.highest_quality)
        # Below its minimum stands only who has refused to go so low: back to where it can, and no further at once.
        due = min(target, max(lease.quality, lease.elastic.min_quality))
        if due != lease.quality:
            tell(books, device, lease, Published(due), now, _reason(lease, due))
        if lease.reclaim is None:
            rising.append((lease, target))
    for lease, target in rising:
        _rise(books, device, lease, target, now)
    if not solution.hard_deficit_bytes:
        return 0
    return device.shortage_bytes(now)


def _rise(books: Books, device: DeviceBook, lease: Lease, target: float, now: float) -> None:
    state, wake = publication.step(lease.published, target, now)
    if state.quality == lease.quality:
        lease.published = state
    elif device.candidate is not None or device.fenced_by(now) is not None or not device.fits(_more(lease, state), now):
        # Not now: asked again when bytes come free, and then without dwelling once more.
        device.starved, wake = True, None
    else:
        tell(books, device, lease, state, now, _reason(lease, state.quality))
    if wake is not None:
        device.next_step = wake if device.next_step is None else min(device.next_step, wake)


def _more(lease: Lease, state: Published) -> int:
    return max(0, lease.elastic.bytes_at(state.quality) - lease.charged_bytes)


def _reason(lease: Lease, quality: float) -> DirectiveReason:
    if lease.refused_floor is not None and quality == lease.elastic.min_quality:
        return DirectiveReason.WORKER_REPORT
    return DirectiveReason.PRESSURE if quality < lease.quality else DirectiveReason.HEADROOM


def tell(books: Books, device: DeviceBook, lease: Lease, state: Published, now: float, reason: DirectiveReason) -> None:
    """Publishes a new quality to one lease."""
    before = lease.quality
    books.settle(lease, now)
    lease.told_at = now
    device.publish(lease, state)
    mean = books.stats.kind(lease.request.workload)
    if mean is not None:
        mean.move(leases=0, quality=state.quality - before, now=now)
    if state.quality < before:
        books.stats.reductions += 1
        lease.waking_since = None
    else:
        books.stats.raises += 1
        if lease.donated_at and lease.waking_since is None:
            lease.waking_since = now
    books.announce(lease, reason)
    books.happened(
        EventKind.QUALITY_CHANGED,
        lease,
        quality=round(state.quality, 4),
        before=round(before, 4),
        memory_limit_bytes=lease.limit_bytes,
        revision=lease.revision,
        reason=reason.name,
    )
