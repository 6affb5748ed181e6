"""What the core knows, as wire messages."""

from __future__ import annotations

import math

from google.protobuf import duration_pb2, timestamp_pb2

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2
from arbiter_sidecar.arbiter import BeatOutcome, BeatResult, Dry
from arbiter_sidecar.ledger.kv import KvDonation, KvPlan, Reservation
from arbiter_sidecar.ledger.leases import Lease, LeaseBook
from arbiter_sidecar.ledger.plans import Donation, Plan
from arbiter_sidecar.policy import preemption
from arbiter_sidecar.policy.quality import Elastic
from arbiter_sidecar.ports import Clock
from arbiter_sidecar.requests import AllocationRequest

#: How long a directive holds without a sign of life from the arbiter: longer than any restart of it should take.
VALID_FOR_S = 60.0
#: Share of the time to live between two heartbeats: two may be lost.
INTERVAL_SHARE = 1 / 3


def span(seconds: float) -> duration_pb2.Duration:
    """Seconds as a duration, to the nanosecond."""
    whole = math.floor(seconds)
    return duration_pb2.Duration(seconds=whole, nanos=min(999_999_999, round((seconds - whole) * 1e9)))


def moment(wall_s: float) -> timestamp_pb2.Timestamp:
    """Seconds since 1970 as a timestamp, to the microsecond."""
    whole = math.floor(wall_s)
    return timestamp_pb2.Timestamp(seconds=whole, nanos=min(999_999, round((wall_s - whole) * 1e6)) * 1000)


class Renderer:
    """Renders leases and directives. Directives are serialised once for all who get them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._valid_for = span(VALID_FOR_S)

    def directive(self, lease: Lease) -> lease_pb2.Directive:
        """What the holder must do now."""
        return lease_pb2.Directive(
            reclaim=self._order(lease),
            kv_token_budget=None if lease.kv is None else lease.kv.budget,
            shard=_layers(lease),
            lease_id=lease.lease_id,
            revision=lease.revision,
            quality=lease.quality,
            memory_limit_bytes=lease.limit_bytes,
            reason=lease_pb2.DirectiveReason.ValueType(lease.directive_reason),
            safe_quality=lease.elastic.min_quality,
            valid_for=self._valid_for,
        )

    def _order(self, lease: Lease) -> lease_pb2.Reclaim | None:
        """The open order of a lease. One for memory comes first; the budget says all that one for tokens would."""
        if lease.reclaim is not None:
            return self._reclaim(lease.reclaim)
        if lease.kv is None or lease.kv.order is None:
            return None
        return lease_pb2.Reclaim(
            reclaim_id=lease.kv.order.reclaim_id,
            kv_tokens=lease.kv.excess,
            grace=span(max(0.0, lease.kv.order.deadline - self._clock.now())),
            level=lease_pb2.ReclaimLevel.ValueType(lease.kv.order.level),
        )

    def _reclaim(self, donation: Donation) -> lease_pb2.Reclaim:
        """An order to give memory back, with the time that is left of its grace."""
        return lease_pb2.Reclaim(
            reclaim_id=donation.reclaim_id,
            memory_bytes=donation.short_bytes,
            grace=span(max(0.0, donation.deadline - self._clock.now())),
            level=lease_pb2.ReclaimLevel.ValueType(donation.level),
            whole=donation.whole,
        )

    def plan(self, plan: Plan | KvPlan) -> pb.RequestPreemptionResponse:
        """A preemption as it ended, in bytes or in tokens."""
        return pb.RequestPreemptionResponse(
            plan_id=plan.plan_id,
            donations=[_donation(donation) for donation in plan.donations.values()],
            confirmed=plan.confirmed if isinstance(plan, KvPlan) else plan.confirmed_bytes,
            rejected=[pb.RejectedDonor(lease_id=lease_id, reason=why) for lease_id, why in plan.rejected.items()],
        )

    def draft(self, draft: preemption.Plan, leases: LeaseBook) -> pb.RequestPreemptionResponse:
        """Who would lose what; it has no plan id."""
        taken = (preemption.Reason.SHRINKS, preemption.Reason.REVOKED)
        return pb.RequestPreemptionResponse(
            donations=[
                pb.Donation(lease_id=each.lease_id, holder=_holder(leases, each.lease_id), planned=each.amount)
                for each in draft.donations
            ],
            rejected=[
                pb.RejectedDonor(lease_id=lease_id, reason=why.value)
                for lease_id, why in draft.reasons.items()
                if why not in taken
            ],
        )

    def reservation(self, reservation: Reservation) -> pb.ReserveKvResponse:
        """A reservation of KV tokens."""
        left = reservation.expires_at - self._clock.now()
        return pb.ReserveKvResponse(
            reservation_id=reservation.reservation_id,
            granted_tokens=reservation.tokens,
            expire_time=moment(self._clock.wall() + left),
        )

    def lease(self, lease: Lease, *, secret: bool) -> lease_pb2.Lease:
        """A lease; with its handle and fence only for the holder."""
        request, now, wall = lease.request, self._clock.now(), self._clock.wall()
        message = lease_pb2.Lease(
            lease_id=lease.lease_id,
            handle=lease.handle if secret else 0,
            fence=lease.fence if secret else 0,
            holder=request.holder,
            namespace=request.namespace,
            device_id=lease.device_id,
            workload_type=lease_pb2.WorkloadType.ValueType(request.workload),
            priority=lease_pb2.Priority.ValueType(request.priority),
            state=lease_pb2.LeaseState.ValueType(lease.state),
            end_reason=lease_pb2.EndReason.ValueType(lease.end_reason),
            memory_bytes=lease.charged_bytes if lease.alive else lease.residue_bytes,
            full_memory_bytes=lease.elastic.full_bytes,
            min_memory_bytes=lease.elastic.floor_bytes,
            min_quality=lease.elastic.min_quality,
            max_quality=lease.elastic.max_quality,
            ttl=span(lease.ttl_s),
            heartbeat_interval=span(lease.ttl_s * INTERVAL_SHARE),
            expire_time=moment(wall + lease.deadline - now),
            create_time=moment(wall + lease.created_at - now),
            directive=self.directive(lease),
            pids=request.pids,
            pids_visible=bool(request.pids) and len(request.processes) == len(request.pids),
            applied_revision=lease.applied_revision,
            labels=request.labels,
        )
        if lease.measured_bytes is not None:
            message.measured_memory_bytes = lease.measured_bytes
        if lease.advised is not None:
            message.advised_quality = lease.advised
        if lease.reported_bytes is not None:
            message.reported_memory_bytes = lease.reported_bytes
        return message

    def dry_lease(self, request: AllocationRequest, dry: Dry, shape: Elastic) -> lease_pb2.Lease:
        """The lease that a request would get; it has no id."""
        return lease_pb2.Lease(
            holder=request.holder,
            namespace=request.namespace,
            device_id=dry.device_id,
            workload_type=lease_pb2.WorkloadType.ValueType(request.workload),
            priority=lease_pb2.Priority.ValueType(request.priority),
            memory_bytes=dry.memory_bytes,
            full_memory_bytes=shape.full_bytes,
            min_memory_bytes=shape.floor_bytes,
            min_quality=shape.min_quality,
            max_quality=shape.max_quality,
            ttl=span(request.ttl_s),
            heartbeat_interval=span(request.ttl_s * INTERVAL_SHARE),
            directive=lease_pb2.Directive(
                quality=dry.quality,
                memory_limit_bytes=dry.memory_bytes,
                reason=lease_pb2.DIRECTIVE_REASON_GRANT,
                safe_quality=shape.min_quality,
                valid_for=self._valid_for,
            ),
            pids=request.pids,
            pids_visible=bool(request.pids) and len(request.processes) == len(request.pids),
            labels=request.labels,
        )

    def beat(
        self, outcome: BeatOutcome, *, sequence: int, epoch: int, draining: bool, interval_s: float
    ) -> pb.HeartbeatResponse:
        """The answer to a heartbeat."""
        return pb.HeartbeatResponse(
            sequence=sequence,
            results=[self._result(result) for result in outcome.results],
            next_heartbeat_interval=span(interval_s),
            server_epoch=epoch,
            draining=draining,
            stale=outcome.stale,
        )

    def _result(self, result: BeatResult) -> pb.HeartbeatResponse.Result:
        message = pb.HeartbeatResponse.Result(
            handle=result.handle,
            lease_id=result.lease_id,
            verdict=pb.Verdict.ValueType(result.verdict),
            reason=result.reason,
            end_reason=lease_pb2.EndReason.ValueType(result.end_reason),
        )
        lease = result.lease
        if lease is not None:
            message.expire_time.CopyFrom(moment(self._clock.wall() + lease.deadline - self._clock.now()))
            if lease.revision > lease.applied_revision:
                message.directive.CopyFrom(self.directive(lease))
        return message


def _layers(lease: Lease) -> lease_pb2.ShardAssignment | None:
    """The layers that a lease is told to serve; ``None`` for one that serves none of a split model.

    An older lease whose shard a newer one serves by now is told that it has none.
    """
    if lease.request.shard is None:
        return None
    record = lease.shard
    if record is None:
        return lease_pb2.ShardAssignment()
    return lease_pb2.ShardAssignment(layer_begin=record.begin, layer_end=record.end, plan_id=record.plan_id)


def _donation(donation: Donation | KvDonation) -> pb.Donation:
    if isinstance(donation, KvDonation):
        planned, confirmed = donation.planned, donation.confirmed
    else:
        planned, confirmed = donation.planned_bytes, donation.confirmed_bytes
    return pb.Donation(
        lease_id=donation.lease.lease_id,
        holder=donation.lease.request.holder,
        planned=planned,
        confirmed=confirmed,
        outcome=pb.DonationOutcome.ValueType(donation.outcome),
    )


def _holder(leases: LeaseBook, lease_id: str) -> str:
    lease = leases.get(lease_id)
    return lease.request.holder if lease is not None else ""
