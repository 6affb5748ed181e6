"""The leases of the in-memory arbiter: grants what fits at full size, renews what lives. Not locked; no clock."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from arbiter.v1 import arbiter_service_pb2, lease_pb2, state_service_pb2
from arbiter_client import errors, terms

if TYPE_CHECKING:
    from collections.abc import Iterable

    Report = arbiter_service_pb2.HeartbeatRequest.Report

#: The only epoch there is.
EPOCH = 1
DEVICE = "memory"


class Books:
    """Leases on one device, with what their holders said about them."""

    def __init__(self, capacity: int, ttl: float) -> None:
        self._capacity = capacity
        self._ttl = ttl
        self._revision = 0
        self._fence = 0
        self._leases: dict[str, lease_pb2.Lease] = {}
        self._ended: dict[str, lease_pb2.EndReason.ValueType] = {}
        self._said: dict[str, Report] = {}
        #: The last order of each lease to give memory back, and what was said about it.
        self._orders: dict[str, str] = {}
        self._acks: dict[str, arbiter_service_pb2.ReclaimAck] = {}
        self._by_request: dict[str, str] = {}

    def grant(self, request: arbiter_service_pb2.AllocateRequest) -> arbiter_service_pb2.AllocateResponse:
        """A lease of full size, or the one that the same request id has already.

        Raises:
            ArbiterClientError: Bad fields, never fits, or does not fit now.
        """
        known = self._leases.get(self._by_request.get(request.request_id, ""))
        if known is not None:
            return self._granted(known, already=True)
        self._check(request)
        lease = self._new_lease(request)
        self._leases[lease.lease_id] = lease
        self._said[lease.lease_id] = arbiter_service_pb2.HeartbeatRequest.Report(lease_id=lease.lease_id)
        self._by_request[request.request_id] = lease.lease_id
        return self._granted(lease, already=False)

    def _check(self, request: arbiter_service_pb2.AllocateRequest) -> None:
        if not request.holder or not request.workload_type or request.memory_bytes < 1:
            raise errors.InvalidRequest("holder, workload_type and memory_bytes are required")
        if request.memory_bytes > self._capacity:
            raise errors.ExceedsCapacity(f"the device has {self._capacity} bytes")
        if request.memory_bytes > self._capacity - self._granted_bytes():
            raise errors.InsufficientMemory(f"{self._capacity - self._granted_bytes()} bytes are free")

    def _new_lease(self, request: arbiter_service_pb2.AllocateRequest) -> lease_pb2.Lease:
        self._fence += 1
        ttl = request.ttl if request.HasField("ttl") else terms.duration(self._ttl)
        lease = lease_pb2.Lease(
            lease_id=secrets.token_hex(8),
            handle=secrets.randbits(64) or 1,
            fence=self._fence,
            holder=request.holder,
            namespace=request.namespace or "default",
            device_id=DEVICE,
            workload_type=request.workload_type,
            priority=request.priority,
            state=lease_pb2.LeaseState.LEASE_STATE_ACTIVE,
            memory_bytes=request.memory_bytes,
            full_memory_bytes=request.memory_bytes,
            min_memory_bytes=request.min_memory_bytes,
            min_quality=request.min_quality,
            max_quality=request.max_quality if request.HasField("max_quality") else 1.0,
            ttl=ttl,
            heartbeat_interval=terms.duration(ttl.ToNanoseconds() / 3e9),
            pids=request.pids,
            labels=request.labels,
        )
        lease.directive.lease_id = lease.lease_id
        lease.directive.quality = lease.max_quality
        lease.directive.memory_limit_bytes = request.memory_bytes
        if request.HasField("kv"):
            # There is no pool to divide: what the engine may have at most, else what it is to keep at least.
            most = request.kv.HasField("max_tokens")
            lease.directive.kv_token_budget = request.kv.max_tokens if most else request.kv.min_tokens
        self._stamp(lease.directive, lease_pb2.DirectiveReason.DIRECTIVE_REASON_GRANT)
        return lease

    def renew(self, request: arbiter_service_pb2.HeartbeatRequest) -> arbiter_service_pb2.HeartbeatResponse:
        """Renews every lease that lives and notes what is said about it."""
        answer = arbiter_service_pb2.HeartbeatResponse(sequence=request.sequence, server_epoch=EPOCH)
        by_handle = {lease.handle: lease for lease in self._leases.values()}
        for handle in request.handles:
            if handle not in by_handle:
                answer.results.add(handle=handle, verdict=arbiter_service_pb2.Verdict.VERDICT_NOT_FOUND)
        for report in request.reports:
            lease = self._leases.get(report.lease_id)
            if lease is None or lease.fence != report.fence:
                answer.results.add(
                    lease_id=report.lease_id,
                    verdict=arbiter_service_pb2.Verdict.VERDICT_FENCED,
                    end_reason=self._ended.get(report.lease_id, lease_pb2.EndReason.END_REASON_UNSPECIFIED),
                )
                continue
            self._note(lease, report, request.server_epoch)
            answer.results.add(
                lease_id=lease.lease_id, handle=lease.handle, verdict=arbiter_service_pb2.Verdict.VERDICT_RENEWED
            )
        ttls = [lease.ttl.ToNanoseconds() / 1e9 for lease in self._leases.values()]
        answer.next_heartbeat_interval.CopyFrom(terms.duration(min(ttls, default=self._ttl) / 3))
        return answer

    def _note(self, lease: lease_pb2.Lease, report: Report, epoch: int) -> None:
        said = self._said[lease.lease_id]
        if epoch != EPOCH:
            report.ClearField("applied_revision")
            report.ClearField("outcome")
        if report.outcome:
            said.ClearField("achievable_quality")
        if report.HasField("kv"):
            # A state, not a change to it: what is zero now must not stay as it was.
            said.ClearField("kv")
        self._hear(lease, report.reclaim_acks)
        # Merging keeps what the new report does not mention, and would add up lists.
        report.ClearField("reclaim_acks")
        report.ClearField("shard_latencies")
        said.MergeFrom(report)
        lease.applied_revision = said.applied_revision
        if report.HasField("used_memory_bytes"):
            lease.reported_memory_bytes = report.used_memory_bytes

    def _hear(self, lease: lease_pb2.Lease, acks: Iterable[arbiter_service_pb2.ReclaimAck]) -> None:
        """Notes what is said about the last order, which the lease's directive carries until it is done."""
        for ack in acks:
            if ack.reclaim_id == self._orders.get(lease.lease_id):
                known = self._acks[lease.lease_id]
                known.MergeFrom(ack)
                if known.done:
                    lease.directive.ClearField("reclaim")

    def release(self, request: arbiter_service_pb2.ReleaseRequest) -> arbiter_service_pb2.ReleaseResponse:
        """Ends a lease for its holder; says so when it had ended before.

        Raises:
            ArbiterClientError: ``LeaseNotFound`` or ``Fenced``.
        """
        if request.lease_id in self._ended:
            return arbiter_service_pb2.ReleaseResponse(already_released=True)
        if self._living(request.lease_id).fence != request.fence:
            raise errors.Fenced()
        self.end(request.lease_id, lease_pb2.EndReason.END_REASON_RELEASED)
        return arbiter_service_pb2.ReleaseResponse()

    def end(self, lease_id: str, reason: lease_pb2.EndReason.ValueType) -> None:
        """Ends a lease.

        Raises:
            LeaseNotFound: No such living lease.
        """
        self._living(lease_id)
        del self._leases[lease_id]
        self._ended[lease_id] = reason

    def direct(self, lease_id: str, reason: lease_pb2.DirectiveReason.ValueType) -> lease_pb2.Directive:
        """The lease's directive under a new revision, to be changed in place.

        Raises:
            LeaseNotFound: No such living lease.
        """
        directive = self._living(lease_id).directive
        self._stamp(directive, reason)
        return directive

    def limit(self, lease_id: str) -> int:
        """The memory limit of a lease, in bytes.

        Raises:
            LeaseNotFound: No such living lease.
        """
        return self._living(lease_id).directive.memory_limit_bytes

    def token_budget(self, lease_id: str, fence: int) -> int:
        """The KV token budget of a lease.

        Raises:
            ArbiterClientError: ``LeaseNotFound``, ``Fenced``, or ``InvalidRequest`` for a lease without one.
        """
        lease = self._living(lease_id)
        if lease.fence != fence:
            raise errors.Fenced()
        if not lease.directive.HasField("kv_token_budget"):
            raise errors.InvalidRequest("the lease is no KV engine")
        return lease.directive.kv_token_budget

    def order(self, directive: lease_pb2.Directive, reclaim: lease_pb2.Reclaim) -> None:
        """Makes ``reclaim`` the last order of the directive's lease."""
        directive.reclaim.CopyFrom(reclaim)
        self._orders[directive.lease_id] = reclaim.reclaim_id
        self._acks[directive.lease_id] = arbiter_service_pb2.ReclaimAck()

    def cancel_reclaim(self, lease_id: str) -> str:
        """Takes the open order out of the lease's directive, which stays otherwise as it is; returns the order's id.

        Raises:
            LeaseNotFound: No such living lease.
            ValueError: There is none.
        """
        directive = self._living(lease_id).directive
        if not directive.HasField("reclaim"):
            raise ValueError(f"{lease_id} has no open order to give memory back")
        reclaim_id = directive.reclaim.reclaim_id
        directive.ClearField("reclaim")
        return reclaim_id

    def acknowledgement(self, lease_id: str) -> arbiter_service_pb2.ReclaimAck:
        """What was said about the last order, of ended leases too; without an id when nothing was.

        Raises:
            LeaseNotFound: No such lease.
        """
        self.said(lease_id)
        return self._acks.get(lease_id) or arbiter_service_pb2.ReclaimAck()

    def said(self, lease_id: str) -> Report:
        """What was last said about a lease, ended ones included.

        Raises:
            LeaseNotFound: No such lease.
        """
        if lease_id not in self._said:
            raise errors.LeaseNotFound()
        return self._said[lease_id]

    def snapshot(self, request: arbiter_service_pb2.StreamQualityRequest) -> arbiter_service_pb2.StreamQualityResponse:
        """The complete state of the subscribed leases; without directives when the subscriber is up to date."""
        wanted = set(request.lease_ids)
        current = request.resume_epoch == EPOCH and request.resume_revision >= self._revision
        return self.quality(
            directives=[lease.directive for lease in self._leases.values() if lease.lease_id in wanted and not current],
            ended=[
                arbiter_service_pb2.EndedLease(lease_id=lease_id, end_reason=reason)
                for lease_id, reason in self._ended.items()
                if lease_id in wanted
            ],
        )

    def quality(
        self,
        *,
        directives: Iterable[lease_pb2.Directive] = (),
        ended: Iterable[arbiter_service_pb2.EndedLease] = (),
        reclaim_cancelled: Iterable[str] = (),
    ) -> arbiter_service_pb2.StreamQualityResponse:
        """A message that brings a subscriber to the present revision."""
        return arbiter_service_pb2.StreamQualityResponse(
            server_epoch=EPOCH,
            revision=self._revision,
            directives=directives,
            ended=ended,
            reclaim_cancelled=reclaim_cancelled,
        )

    def state(self) -> state_service_pb2.GetStateResponse:
        """The device and the living leases, without handles and fences."""
        response = state_service_pb2.GetStateResponse(version="in-memory", server_epoch=EPOCH, revision=self._revision)
        granted = self._granted_bytes()
        response.devices.add(
            device_id=DEVICE,
            name="in-memory device",
            kind=state_service_pb2.DeviceKind.DEVICE_KIND_STATIC,
            health=state_service_pb2.DeviceHealth.DEVICE_HEALTH_OK,
            attribution=state_service_pb2.Attribution.ATTRIBUTION_SELF_REPORTED,
            total_bytes=self._capacity,
            capacity_bytes=self._capacity,
            granted_bytes=granted,
            available_bytes=self._capacity - granted,
            target_bytes=self._capacity,
            pressure=granted / self._capacity if self._capacity else 1.0,
        )
        for lease in self._leases.values():
            shown = response.leases.add()
            shown.CopyFrom(lease)
            shown.ClearField("handle")
            shown.ClearField("fence")
        return response

    def _granted(self, lease: lease_pb2.Lease, *, already: bool) -> arbiter_service_pb2.AllocateResponse:
        return arbiter_service_pb2.AllocateResponse(
            lease=lease, directive=lease.directive, already_granted=already, server_epoch=EPOCH
        )

    def _granted_bytes(self) -> int:
        return sum(lease.memory_bytes for lease in self._leases.values())

    def _living(self, lease_id: str) -> lease_pb2.Lease:
        if lease_id not in self._leases:
            raise errors.LeaseNotFound()
        return self._leases[lease_id]

    def _stamp(self, directive: lease_pb2.Directive, reason: lease_pb2.DirectiveReason.ValueType) -> None:
        self._revision += 1
        directive.revision = self._revision
        directive.reason = reason
