"""Observe-only: everybody has what they ask for, and the books say what the arbiter would have done.

The advice is made by the same rules as the real thing, from the same measurements; only what others would have done in
return is missing from it.
"""

from __future__ import annotations

from dataclasses import replace

from arbiter_sidecar.arbiter import admission, preempting, publishing
from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.policy import publication
from arbiter_sidecar.types import EventKind


def admit(books: Books, now: float) -> None:
    """Grants every waiting request at its best, whatever else is on the device; says what would have become of it.

    Nobody waits longer than for this, so that there still is a device for everybody who was let into the line.
    """
    for waiter in books.queue:
        able = admission.able(books, waiter.request)
        best = max(
            (admission.prospect(books, device, waiter.request, now) for device in able),
            key=lambda each: each.rank,
        )
        shape = best.elastic
        if not best.fits or best.quality < shape.max_quality:
            books.event(
                EventKind.GRANT_ADVISED,
                request_id=waiter.name,
                request=waiter.request,
                device_id=best.device.device_id,
                decision=_decision(best),
                quality=round(best.quality, 4),
                memory_bytes=best.start_bytes,
                short_bytes=best.short_bytes,
            )
        books.queue.remove(waiter)
        most = replace(best, quality=shape.max_quality, start_bytes=shape.bytes_at(shape.max_quality))
        admission.grant(books, most, waiter, now)


def _decision(best: admission.Prospect) -> str:
    if best.fits:
        return "grant at this quality"
    return "lower others and wait" if best.feasible else "wait for somebody to leave"


def advise(books: Books, device: DeviceBook, now: float) -> None:
    """Says what the leases of a device would be told, and who would be asked to go; only where that has changed."""
    solution = publishing.solve(books, device, None, now, leniently=True)
    for lease, exact in zip(device.staying, solution.targets, strict=True):
        target = publication.quantise(exact, minimum=lease.elastic.min_quality, maximum=lease.elastic.max_quality)
        target = min(target, lease.highest_quality)
        before = lease.quality if lease.advised is None else lease.advised
        if target != before:
            lease.advised = target
            books.happened(
                EventKind.QUALITY_ADVISED,
                lease,
                quality=round(target, 4),
                before=round(before, 4),
                memory_limit_bytes=lease.elastic.bytes_at(target),
            )
    wish = preempting.machine_wish(books, device, solution.hard_deficit_bytes, now)
    donors: tuple[str, ...] = ()
    if wish is not None:
        donors = tuple(each.lease_id for each in preempting.draft(books, wish, now).donations)
    if donors != device.advised_donors:
        device.advised_donors = donors
        books.event(
            EventKind.PREEMPTION_ADVISED,
            device_id=device.device_id,
            need_bytes=0 if wish is None else wish.need_bytes,
            donors=",".join(donors),
        )
