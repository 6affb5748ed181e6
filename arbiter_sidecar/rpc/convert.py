"""Wire messages to requests of the core. Everything a caller can get wrong is found here, before anything changes."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arbiter_sidecar.ports import ProcessWatch
from arbiter_sidecar.requests import (
    AllocationRequest,
    AssignmentRequest,
    Beat,
    KvShare,
    KvUsage,
    LayerRange,
    PreemptionRequest,
    ReclaimAck,
    Report,
    ReservationRequest,
    ShardPlace,
)
from arbiter_sidecar.rpc.fields import Fields
from arbiter_sidecar.types import LeaseId, Priority, ReportOutcome, WorkloadType

if TYPE_CHECKING:
    from arbiter.v1 import arbiter_service_pb2 as pb
    from arbiter.v1 import balance_service_pb2 as balance_pb

#: Seconds a request waits by default, by type …
WAIT_S = {
    WorkloadType.LLM_INFERENCE: 30.0,
    WorkloadType.IMAGE_GENERATION: 60.0,
    WorkloadType.VIDEO_GENERATION: 120.0,
    WorkloadType.OTHER: 30.0,
}
#: … times this, by priority.
WAIT_FACTOR = {
    Priority.BACKGROUND: 0.5,
    Priority.LOW: 0.75,
    Priority.NORMAL: 1.0,
    Priority.HIGH: 1.5,
    Priority.CRITICAL: 2.0,
}
#: Longest silence a worker may announce: loading the largest model from a slow disk.
MAX_QUIET_S = 900.0
#: Handles and reports of one heartbeat; longer messages hold up everybody else.
MAX_HANDLES = 2000
MAX_REPORTS = 256
MAX_SUBSCRIBED = 2000
#: Layers of one shard: a hundred times what the deepest models have, and so few that all of a machine can be counted.
MAX_LAYERS = 20_000
#: Shards that one assignment names.
MAX_ASSIGNED = 2000
#: Longest forward pass, in seconds; a longer one was no pass.
MAX_PASS_S = 3600.0
MAX_INT32 = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """Times to live, in seconds.

    Attributes:
        ttl_default_s: Where the request names none.
        ttl_min_s: Lower bound; shorter ones are raised to it.
        ttl_max_s: Upper bound; longer ones are lowered to it.
    """

    ttl_default_s: float = 15.0
    ttl_min_s: float = 3.0
    ttl_max_s: float = 300.0

    def clamp(self, ttl_s: float) -> float:
        """The time to live that is granted for one that is asked."""
        return min(self.ttl_max_s, max(self.ttl_min_s, ttl_s))


def allocation(
    message: pb.AllocateRequest, *, times: LeaseTimes, watch: ProcessWatch, wait_at_most_s: float = math.inf
) -> AllocationRequest:
    """A checked allocation request, which waits no longer than its caller.

    Raises:
        InvalidRequest: Fields are missing or out of range; all of them are named.
    """
    fields = Fields()
    workload = fields.enum("workload_type", message.workload_type, WorkloadType)
    priority = fields.enum("priority", message.priority, Priority, default=Priority.NORMAL)
    memory = fields.integer("memory_bytes", message.memory_bytes, least=1)
    min_memory = None
    if message.HasField("min_memory_bytes"):
        min_memory = fields.integer("min_memory_bytes", message.min_memory_bytes, least=0)
        if min_memory > memory >= 1:
            fields.fault("min_memory_bytes", f"is {min_memory}, more than memory_bytes {memory}")
    lowest, highest = _qualities(fields, message, workload)
    pids = _pids(fields, message)
    processes = tuple(found for pid in pids if (found := watch.identify(pid)) is not None)
    startup = 0.0
    if message.HasField("startup_window"):
        startup = fields.span("startup_window", message.startup_window, most=MAX_QUIET_S)
        if startup > 0 and not processes:
            fields.fault("startup_window", "needs pids that the arbiter can see")
    ttl = times.ttl_default_s
    if message.HasField("ttl"):
        ttl = times.clamp(fields.span("ttl", message.ttl, positive=True))
    wait = WAIT_S[workload] * WAIT_FACTOR[priority]
    if message.HasField("wait_timeout"):
        wait = fields.span("wait_timeout", message.wait_timeout)
    request = AllocationRequest(
        holder=fields.text("holder", message.holder, required=True),
        workload=workload,
        memory_bytes=memory,
        request_id=fields.text("request_id", message.request_id),
        namespace=fields.text("namespace", message.namespace, limit=64) or "default",
        pids=pids,
        processes=processes,
        priority=priority,
        min_memory_bytes=min_memory,
        min_quality=lowest,
        max_quality=highest,
        device_id=fields.text("device_id", message.device_id),
        ttl_s=ttl,
        wait_s=max(0.0, min(wait, wait_at_most_s)),
        startup_window_s=startup,
        preemptible=message.preemptible if message.HasField("preemptible") else True,
        may_preempt=message.may_preempt,
        kv=_kv(fields, message.kv) if message.HasField("kv") else None,
        shard=_shard(fields, message.shard) if message.HasField("shard") else None,
        labels=_labels(fields, message),
    )
    fields.verify()
    return request


def _qualities(fields: Fields, message: pb.AllocateRequest, workload: WorkloadType) -> tuple[float | None, float]:
    highest = fields.quality("max_quality", message.max_quality) if message.HasField("max_quality") else 1.0
    if not message.HasField("min_quality"):
        return None, highest
    lowest = fields.quality("min_quality", message.min_quality)
    if lowest > highest:
        fields.fault("min_quality", f"is {lowest:g}, more than max_quality {highest:g}")
    return lowest, highest


def _pids(fields: Fields, message: pb.AllocateRequest) -> tuple[int, ...]:
    if len(message.pids) > 64:
        fields.fault("pids", f"names {len(message.pids)} processes, at most 64 are allowed")
        return ()
    for pid in message.pids:
        fields.integer("pids", pid, least=1, most=(1 << 31) - 1)
        if pid == os.getpid():
            fields.fault("pids", "names the arbiter itself")
    return tuple(dict.fromkeys(message.pids))


def _kv(fields: Fields, message: pb.KvShare) -> KvShare:
    least = fields.integer("kv.min_tokens", message.min_tokens, least=0)
    most = None
    if message.HasField("max_tokens"):
        most = fields.integer("kv.max_tokens", message.max_tokens, least=0)
        if most < least:
            fields.fault("kv.max_tokens", f"is {most}, less than min_tokens {least}")
    return KvShare(
        share_weight=fields.integer("kv.share_weight", message.share_weight or 1, least=1, most=1_000_000),
        min_tokens=least,
        max_tokens=most,
        block_tokens=fields.integer("kv.block_tokens", message.block_tokens or 16, least=1, most=1 << 20),
    )


def _shard(fields: Fields, message: pb.Shard) -> ShardPlace:
    if 0 < message.max_layers < message.layers:
        fields.fault("shard.max_layers", f"is {message.max_layers}, less than layers {message.layers}")
    return ShardPlace(
        group=fields.text("shard.group", message.group, required=True),
        name=fields.text("shard.name", message.name, required=True),
        position=fields.integer("shard.position", message.position, least=0, most=10_000),
        layers=fields.integer("shard.layers", message.layers, least=0, most=MAX_LAYERS),
        bytes_per_layer=fields.integer("shard.bytes_per_layer", message.bytes_per_layer, least=0),
        max_layers=fields.integer("shard.max_layers", message.max_layers, least=0, most=MAX_LAYERS) or None,
    )


def _labels(fields: Fields, message: pb.AllocateRequest) -> dict[str, str]:
    if len(message.labels) > 16:
        fields.fault("labels", f"has {len(message.labels)} entries, at most 16 are allowed")
        return {}
    return {
        fields.text("labels", key, required=True, limit=64): fields.text("labels", value, limit=256)
        for key, value in message.labels.items()
    }


def beat(message: pb.HeartbeatRequest, *, epoch: int) -> Beat:
    """A checked heartbeat. Revisions of another server epoch are dropped: they count something else.

    Raises:
        InvalidRequest: Fields are out of range; all of them are named.
    """
    fields = Fields()
    if len(message.handles) > MAX_HANDLES:
        fields.fault("handles", f"names {len(message.handles)} leases, at most {MAX_HANDLES} are allowed")
    if len(message.reports) > MAX_REPORTS:
        fields.fault("reports", f"has {len(message.reports)} entries, at most {MAX_REPORTS} are allowed")
    fields.verify()
    ours = message.server_epoch == epoch
    taken = Beat(
        worker=fields.text("worker", message.worker, limit=256),
        incarnation=fields.integer("incarnation", message.incarnation, least=0, most=(1 << 63) - 1),
        sequence=fields.integer("sequence", message.sequence, least=0, most=(1 << 63) - 1),
        handles=tuple(message.handles),
        reports=tuple(
            _report(fields, f"reports[{place}]", report, ours=ours) for place, report in enumerate(message.reports)
        ),
    )
    fields.verify()
    return taken


def _report(fields: Fields, where: str, message: pb.HeartbeatRequest.Report, *, ours: bool) -> Report:
    achievable = None
    if message.HasField("achievable_quality"):
        achievable = fields.quality(f"{where}.achievable_quality", message.achievable_quality)
    used = None
    if message.HasField("used_memory_bytes"):
        used = fields.integer(f"{where}.used_memory_bytes", message.used_memory_bytes, least=0)
    if len(message.shard_latencies) > MAX_REPORTS:
        fields.fault(f"{where}.shard_latencies", f"has {len(message.shard_latencies)} entries, at most {MAX_REPORTS}")
    if len(message.reclaim_acks) > MAX_REPORTS:
        fields.fault(f"{where}.reclaim_acks", f"has {len(message.reclaim_acks)} entries, at most {MAX_REPORTS}")
    revision = fields.integer(f"{where}.applied_revision", message.applied_revision, least=0, most=(1 << 63) - 1)
    return Report(
        lease_id=LeaseId(fields.text(f"{where}.lease_id", message.lease_id, required=True)),
        fence=fields.integer(f"{where}.fence", message.fence, least=0, most=(1 << 63) - 1),
        applied_revision=revision if ours else 0,
        outcome=fields.enum(f"{where}.outcome", message.outcome, ReportOutcome),
        achievable_quality=achievable,
        used_memory_bytes=used,
        kv=_kv_usage(fields, f"{where}.kv", message.kv) if message.HasField("kv") else None,
        shard_latencies_us=_latencies(fields, f"{where}.shard_latencies", message),
        busy_for_s=fields.span(f"{where}.busy_for", message.busy_for, most=MAX_QUIET_S),
        reclaim_acks=tuple(
            ReclaimAck(
                reclaim_id=fields.text(f"{where}.reclaim_acks", ack.reclaim_id, required=True),
                freed_bytes=fields.integer(f"{where}.reclaim_acks", ack.freed_bytes, least=0),
                done=ack.done,
            )
            for ack in message.reclaim_acks[:MAX_REPORTS]
        ),
    )


def _latencies(fields: Fields, where: str, message: pb.HeartbeatRequest.Report) -> tuple[float, ...]:
    """Microseconds of each forward pass."""
    return tuple(
        fields.span(where, latency, positive=True, most=MAX_PASS_S) * 1e6
        for latency in message.shard_latencies[:MAX_REPORTS]
    )


def _kv_usage(fields: Fields, where: str, message: pb.KvUsage) -> KvUsage:
    demand = None
    if message.HasField("demand_tokens"):
        demand = fields.integer(f"{where}.demand_tokens", message.demand_tokens, least=0)
    return KvUsage(
        active=message.active,
        resident_tokens=fields.integer(f"{where}.resident_tokens", message.resident_tokens, least=0),
        demand_tokens=demand,
        lowest_running_priority=fields.enum(
            f"{where}.lowest_running_priority", message.lowest_running_priority, Priority, default=Priority.NORMAL
        ),
        freeable_tokens=fields.integer(f"{where}.freeable_tokens", message.freeable_tokens, least=0),
    )


def claim(message: pb.Reattach) -> tuple[str, int]:
    """Lease and fence of a re-attachment. Raises InvalidRequest."""
    fields = Fields()
    lease_id = fields.text("reattach.lease_id", message.lease_id, required=True)
    fence = fields.integer("reattach.fence", message.fence, least=1, most=(1 << 63) - 1)
    fields.verify()
    return lease_id, fence


def preemption(message: pb.RequestPreemptionRequest) -> PreemptionRequest:
    """A checked request to have memory taken from others.

    Raises:
        InvalidRequest: Fields are missing or out of range; all of them are named.
    """
    fields = Fields()
    tokens = message.WhichOneof("need") == "kv_tokens"
    grace = None
    if message.HasField("timeout"):
        grace = fields.span("timeout", message.timeout, positive=True, most=MAX_QUIET_S)
    priority = None
    if message.priority:
        priority = fields.enum("priority", message.priority, Priority)
    asked = PreemptionRequest(
        lease_id=fields.text("lease_id", message.lease_id),
        device_id=fields.text("device_id", message.device_id),
        priority=priority,
        need_bytes=0 if tokens else fields.integer("memory_bytes", message.memory_bytes, least=1),
        need_tokens=fields.integer("kv_tokens", message.kv_tokens, least=1) if tokens else 0,
        allow_partial=message.allow_partial,
        grace_s=grace,
        request_id=fields.text("request_id", message.request_id),
    )
    fields.verify()
    return asked


def reservation(message: pb.ReserveKvRequest, *, wait_at_most_s: float = math.inf) -> ReservationRequest:
    """A checked request to reserve KV tokens, which waits no longer than its caller; by default not at all.

    Raises:
        InvalidRequest: Fields are missing or out of range; all of them are named.
    """
    fields = Fields()
    wait = fields.span("wait_timeout", message.wait_timeout)
    asked = ReservationRequest(
        lease_id=fields.text("lease_id", message.lease_id, required=True),
        fence=fields.integer("fence", message.fence, least=1, most=(1 << 63) - 1),
        tokens=fields.integer("tokens", message.tokens, least=1),
        request_id=fields.text("request_id", message.request_id),
        wait_s=max(0.0, min(wait, wait_at_most_s)),
    )
    fields.verify()
    return asked


def completion(message: pb.CompleteKvRequest) -> str:
    """The reservation that is returned. What was really used changes nothing, but must make sense.

    Raises:
        InvalidRequest: Fields are missing or out of range; all of them are named.
    """
    fields = Fields()
    reservation_id = fields.text("reservation_id", message.reservation_id, required=True)
    fields.integer("actual_tokens", message.actual_tokens, least=0)
    fields.verify()
    return reservation_id


def split_model(message: balance_pb.EvaluateBalanceRequest) -> tuple[str, str, int]:
    """Namespace and name of a split model, and the layers that are to be placed; 0 for none. Raises InvalidRequest."""
    fields = Fields()
    group = fields.text("group", message.group, required=True)
    namespace = fields.text("namespace", message.namespace, limit=64) or "default"
    layers = fields.integer("layers", message.layers, least=0, most=MAX_LAYERS)
    fields.verify()
    return namespace, group, layers


def assignment(message: balance_pb.ApplyAssignmentRequest) -> AssignmentRequest:
    """A checked request to move layers.

    Raises:
        InvalidRequest: Fields are missing or out of range; all of them are named.
    """
    fields = Fields()
    if len(message.assignment) > MAX_ASSIGNED:
        fields.fault("assignment", f"names {len(message.assignment)} shards, at most {MAX_ASSIGNED} are allowed")
        fields.verify()
    ranges = tuple(_layer_range(fields, f"assignment[{place}]", each) for place, each in enumerate(message.assignment))
    if len({each.shard for each in ranges}) < len(ranges):
        fields.fault("assignment", "names a shard twice")
    asked = AssignmentRequest(
        namespace=fields.text("namespace", message.namespace, limit=64) or "default",
        group=fields.text("group", message.group, required=True),
        plan_id=fields.text("plan_id", message.plan_id),
        assignment=ranges,
    )
    fields.verify()
    return asked


def _layer_range(fields: Fields, where: str, message: balance_pb.LayerAssignment) -> LayerRange:
    begin = fields.integer(f"{where}.layer_begin", message.layer_begin, least=0, most=MAX_INT32)
    end = fields.integer(f"{where}.layer_end", message.layer_end, least=0, most=MAX_INT32)
    if 0 <= end < begin:
        fields.fault(f"{where}.layer_end", f"is {end}, before layer_begin {begin}")
    return LayerRange(shard=fields.text(f"{where}.shard", message.shard, required=True), begin=begin, end=end)


def watched(message: balance_pb.WatchBalanceRequest) -> tuple[str, str]:
    """Namespace and name of what is watched; empty for all. Raises InvalidRequest."""
    fields = Fields()
    namespace = fields.text("namespace", message.namespace, limit=64)
    group = fields.text("group", message.group)
    fields.verify()
    return namespace, group


def release(message: pb.ReleaseRequest) -> tuple[str, int]:
    """Lease and fence of a release. Raises InvalidRequest."""
    fields = Fields()
    lease_id = fields.text("lease_id", message.lease_id, required=True)
    fence = fields.integer("fence", message.fence, least=1, most=(1 << 63) - 1)
    fields.verify()
    return lease_id, fence


def subscription(message: pb.StreamQualityRequest) -> list[str]:
    """The leases of a subscription, each once. Raises InvalidRequest."""
    fields = Fields()
    if not message.lease_ids:
        fields.fault("lease_ids", "is required: name at least one lease")
    if len(message.lease_ids) > MAX_SUBSCRIBED:
        fields.fault("lease_ids", f"names {len(message.lease_ids)} leases, at most {MAX_SUBSCRIBED} are allowed")
        fields.verify()
    for lease_id in message.lease_ids:
        fields.text("lease_ids", lease_id, required=True)
    fields.verify()
    return list(dict.fromkeys(message.lease_ids))
