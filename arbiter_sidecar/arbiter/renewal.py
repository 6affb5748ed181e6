"""Heartbeats: renewing leases and taking reports in."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from arbiter_sidecar.arbiter import kv, shards
from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.ledger.leases import Grave, Lease
from arbiter_sidecar.ledger.plans import Donation
from arbiter_sidecar.requests import Beat, Report
from arbiter_sidecar.types import DeviceId, EndReason, EventKind, LeaseId, ReportOutcome, Verdict

#: Workers whose order of messages is remembered; the one that was silent longest is forgotten first.
MAX_WORKERS = 10_000


@dataclass(frozen=True, slots=True)
class BeatResult:
    """What became of one lease in a heartbeat.

    Attributes:
        verdict: The verdict.
        handle: The handle it was named by; 0 when it was named by id.
        lease_id: Its id; empty when the handle is unknown.
        lease: The lease, where it lives.
        end_reason: Why it ended, where it did.
        reason: Why it was not renewed, for people.
    """

    verdict: Verdict
    handle: int
    lease_id: str
    lease: Lease | None = None
    end_reason: EndReason = EndReason.NONE
    reason: str = ""


@dataclass(slots=True)
class BeatOutcome:
    """What became of a heartbeat.

    Attributes:
        results: One for each report, and one for each handle that was not renewed or has an unapplied directive.
        stale: It came later than a newer one of the same worker and was ignored.
        touched: Devices on which it made bytes free that somebody waits for, or targets impossible.
        eased: Devices on which it made bytes free that nobody waits for.
    """

    results: list[BeatResult] = field(default_factory=list)
    stale: bool = False
    touched: dict[DeviceId, None] = field(default_factory=dict)
    eased: dict[DeviceId, None] = field(default_factory=dict)


class Renewals:
    """Keeps leases alive."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._order: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def take(self, beat: Beat, now: float) -> BeatOutcome:
        """Renews what a heartbeat names and takes its reports in."""
        outcome = BeatOutcome()
        self._books.stats.heartbeats += 1
        if not self._in_order(beat):
            outcome.stale = True
            return outcome
        by_handle = self._books.leases.by_handle
        for handle in beat.handles:
            lease = by_handle(handle)
            if lease is None or not self._renew(lease, now, outcome):
                outcome.results.append(self._lost(lease, handle))
            elif lease.revision > lease.applied_revision:
                outcome.results.append(BeatResult(Verdict.RENEWED, handle, lease.lease_id, lease))
        for report in beat.reports:
            outcome.results.append(self._report(report, now, outcome))
        return outcome

    def confirm(self, lease: Lease) -> None:
        """The first sign of life of a holder."""
        if not lease.confirmed:
            lease.confirmed = True
            self._books.happened(EventKind.LEASE_CONFIRMED, lease)

    def expire(self, lease: Lease, now: float) -> None:
        """Ends a lease whose holder was silent too long."""
        self._books.stats.expired += 1
        self._books.end(lease, EndReason.EXPIRED, now)

    def _in_order(self, beat: Beat) -> bool:
        if not beat.worker or not beat.sequence:
            return True
        place = (beat.incarnation, beat.sequence)
        if place <= self._order.get(beat.worker, (0, 0)):
            return False
        self._order[beat.worker] = place
        self._order.move_to_end(beat.worker)
        if len(self._order) > MAX_WORKERS:
            self._order.popitem(last=False)
        return True

    def _renew(self, lease: Lease, now: float, outcome: BeatOutcome) -> bool:
        if not lease.alive:
            return False
        if lease.deadline <= now:
            self.expire(lease, now)
            outcome.touched[lease.device_id] = None
            return False
        lease.last_beat = now
        if lease.shard is not None:
            self._books.shards.observe(lease, answered=True)
        if lease.suspect:
            lease.suspect = False
            if lease.kv is not None:
                self._books.device_of(lease).kv.dirty = True
                outcome.touched[lease.device_id] = None
        lease.deadline = max(now + lease.ttl_s, lease.quiet_until)
        if not lease.confirmed:
            self.confirm(lease)
        return True

    def _lost(self, lease: Lease | None, handle: int) -> BeatResult:
        known: Lease | Grave | None = lease if lease is not None else self._books.leases.grave_by_handle(handle)
        if known is None:
            return BeatResult(Verdict.NOT_FOUND, handle, "", reason="no lease has this handle")
        return self._fenced(known.lease_id, known.end_reason, handle)

    @staticmethod
    def _fenced(lease_id: LeaseId, end_reason: EndReason, handle: int = 0) -> BeatResult:
        return BeatResult(
            Verdict.FENCED, handle, lease_id, end_reason=end_reason, reason=f"the lease has ended: {end_reason.name}"
        )

    def _report(self, report: Report, now: float, outcome: BeatOutcome) -> BeatResult:
        books = self._books
        lease = books.leases.get(report.lease_id)
        known: Lease | Grave | None = lease if lease is not None else books.leases.grave(report.lease_id)
        if known is None:
            return BeatResult(Verdict.NOT_FOUND, 0, report.lease_id, reason="no such lease")
        if known.fence != report.fence:
            return BeatResult(Verdict.FENCED, 0, report.lease_id, reason="the fence is not the lease's")
        if lease is None or not self._renew(lease, now, outcome):
            return self._fenced(known.lease_id, known.end_reason)
        self._take_in(lease, report, now, outcome)
        return BeatResult(Verdict.RENEWED, 0, lease.lease_id, lease)

    def _take_in(self, lease: Lease, report: Report, now: float, outcome: BeatOutcome) -> None:
        if report.used_memory_bytes is not None:
            lease.reported_bytes = report.used_memory_bytes
        if report.kv is not None and kv.hear(self._books, lease, report.kv):
            outcome.touched[lease.device_id] = None
        if lease.shard is not None:
            # Before the directive: what is reported beside a confirmation was measured before it.
            lease.shard.hear(report.shard_latencies_us, now)
        if report.busy_for_s > 0.0 and lease.request.processes:
            # The life of its processes stands for heartbeats meanwhile; without any to see, silence means nothing good.
            lease.quiet_until = max(lease.quiet_until, now + report.busy_for_s)
            lease.deadline = max(lease.deadline, lease.quiet_until)
        self._hear_acks(lease, report, outcome)
        self._apply_directive(lease, report, now, outcome)
        if lease.kv is not None and kv.confirm(self._books, lease, now):
            outcome.touched[lease.device_id] = None
        shards.confirm(self._books, lease)

    def _apply_directive(self, lease: Lease, report: Report, now: float, outcome: BeatOutcome) -> None:
        """What the holder made of the newest directive it names."""
        if not lease.applied_revision < report.applied_revision <= lease.revision:
            return
        if report.outcome is ReportOutcome.REFUSED:
            self._refuse(lease, report, now, outcome)
        elif report.outcome is not ReportOutcome.DEFERRED:
            started = not lease.applied_revision and self._books.device_of(lease).starter is lease
            lease.applied_revision = report.applied_revision
            if started:
                # Who waited for it to start up may come in now.
                outcome.touched[lease.device_id] = None
            if report.applied_revision == lease.revision:
                if lease.waking_since is not None:
                    lease.wake_cost_s, lease.waking_since = now - lease.waking_since, None
                self._apply(lease, outcome)

    def _hear_acks(self, lease: Lease, report: Report, outcome: BeatOutcome) -> None:
        """The holder answers an order to give memory back. What it says only counts where the books agree."""
        donation, order = lease.reclaim, lease.kv.order if lease.kv is not None else None
        for ack in report.reclaim_acks:
            if order is not None and ack.reclaim_id == order.reclaim_id and not order.acknowledged:
                order.acknowledged = True
                self._books.happened(EventKind.RECLAIM_ACKNOWLEDGED, lease, reclaim_id=order.reclaim_id)
            if donation is None or ack.reclaim_id != donation.reclaim_id:
                continue
            self._acknowledge(lease, donation)
            # Its words are about this order, whatever it has been told since, and count as far as measurement agrees.
            left = max(lease.limit_bytes, donation.limit_bytes)
            if not ack.done:
                left = max(left, donation.baseline_bytes - ack.freed_bytes)
            if not donation.whole and lease.charged_bytes > left:
                self._books.device_of(lease).charge(lease, left)
                outcome.touched[lease.device_id] = None

    def _acknowledge(self, lease: Lease, donation: Donation) -> None:
        if not donation.acknowledged:
            donation.acknowledged = True
            self._books.happened(EventKind.RECLAIM_ACKNOWLEDGED, lease, reclaim_id=donation.reclaim_id)

    def _apply(self, lease: Lease, outcome: BeatOutcome) -> None:
        """The holder runs at what it was told: bytes above that are free, as far as they are not measured there."""
        books, device = self._books, self._books.device_of(lease)
        if lease.reclaim is not None:
            # Whoever applies what it was last told has answered, whatever it is told next.
            self._acknowledge(lease, lease.reclaim)
        freed = lease.charged_bytes - lease.limit_bytes
        books.happened(
            EventKind.DIRECTIVE_APPLIED,
            lease,
            revision=lease.revision,
            quality=round(lease.quality, 4),
            freed_bytes=freed,
        )
        if freed > 0:
            device.charge(lease, lease.limit_bytes)
            if device.candidate is not None or device.starved or device.plan is not None:
                outcome.touched[lease.device_id] = None
            else:
                outcome.eased[lease.device_id] = None

    def _refuse(self, lease: Lease, report: Report, now: float, outcome: BeatOutcome) -> None:
        """The holder cannot go so low: plan once more with what it can reach, and do not ask again for a while."""
        books, device = self._books, self._books.device_of(lease)
        books.happened(
            EventKind.DIRECTIVE_REFUSED,
            lease,
            revision=report.applied_revision,
            quality=round(lease.quality, 4),
            achievable_quality=report.achievable_quality,
        )
        if lease.reclaim is not None:
            # It has answered; at the deadline others are asked for what it did not give.
            self._acknowledge(lease, lease.reclaim)
            return
        reachable = report.achievable_quality
        if reachable is None or reachable <= lease.quality or report.applied_revision != lease.revision:
            return
        if lease.elastic.bytes_at(min(reachable, lease.elastic.max_quality)) > lease.charged_bytes:
            # A refusal keeps what was held before, it is no way to grow.
            return
        lease.applied_revision = report.applied_revision
        lease.refused_floor = min(reachable, lease.request.max_quality)
        lease.refused_until = now + books.config.refusal_hold_s
        device.reshape(lease, books.shape_of(lease))
        books.later(lease.refused_until, "forgive", lease)
        outcome.touched[lease.device_id] = None

    def forgive(self, lease: Lease, now: float) -> None:
        """A refusal has been respected long enough: the lease may be asked again."""
        if lease.alive and lease.refused_floor is not None and lease.refused_until <= now:
            lease.refused_floor = None
            self._books.device_of(lease).reshape(lease, self._books.shape_of(lease))
