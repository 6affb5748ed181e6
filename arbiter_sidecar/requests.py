"""What callers ask of the core, already validated: the edge builds these, the core never sees a wire message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from arbiter_sidecar.types import LeaseId, Priority, Process, ReportOutcome, WorkloadType


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShare:
    """Share of an engine in the KV tokens of its device."""

    share_weight: int = 1
    min_tokens: int = 0
    max_tokens: int | None = None
    block_tokens: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlace:
    """Place of a worker in a model that is split over devices."""

    group: str
    name: str
    position: int
    layers: int
    bytes_per_layer: int
    max_layers: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationRequest:
    """A wish for a lease.

    Attributes:
        holder: Name of the worker.
        workload: What it does.
        memory_bytes: Bytes at quality 1, at least 1.
        request_id: Makes a retry safe; empty for none.
        namespace: Namespace.
        pids: Processes as the caller named them.
        processes: Those of them that can be seen.
        priority: Importance.
        min_memory_bytes: Bytes at the minimum quality; ``None``: the default elasticity says.
        min_quality: Lowest useful quality; ``None``: the workload's default.
        max_quality: Highest useful quality.
        device_id: The device; empty: the best.
        ttl_s: Time to live, already clamped.
        wait_s: How long to wait; 0: not at all.
        startup_window_s: Silence allowed at first, 0 for none.
        preemptible: Whether it may be preempted.
        may_preempt: Whether others may be preempted for it.
        kv: Present for a KV engine.
        shard: Present for a shard.
        labels: Free labels.
    """

    holder: str
    workload: WorkloadType
    memory_bytes: int
    request_id: str = ""
    namespace: str = "default"
    pids: tuple[int, ...] = ()
    # Which of them can be seen changes when one dies; a retry is the same request all the same.
    processes: tuple[Process, ...] = field(default=(), compare=False)
    priority: Priority = Priority.NORMAL
    min_memory_bytes: int | None = None
    min_quality: float | None = None
    max_quality: float = 1.0
    device_id: str = ""
    ttl_s: float = 15.0
    wait_s: float = field(default=0.0, compare=False)
    startup_window_s: float = 0.0
    preemptible: bool = True
    may_preempt: bool = False
    kv: KvShare | None = None
    shard: ShardPlace | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionRequest:
    """A wish to have memory or KV tokens taken from others.

    Attributes:
        lease_id: The lease that asks; empty for a person.
        device_id: The device; with a lease empty or the lease's own.
        priority: With which it asks; ``None``: the lease's own, NORMAL without a lease.
        need_bytes: How many bytes, at least 1; 0 when tokens are wanted.
        need_tokens: How many KV tokens, at least 1; 0 when bytes are wanted.
        allow_partial: Less is welcome.
        grace_s: Time from notice to deadline; ``None``: the configured one.
        request_id: Makes a retry safe; empty for none.
    """

    need_bytes: int = 0
    need_tokens: int = 0
    lease_id: str = ""
    request_id: str = ""
    device_id: str = ""
    priority: Priority | None = None
    allow_partial: bool = False
    grace_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationRequest:
    """A wish to reserve KV tokens.

    Attributes:
        lease_id: The engine's lease.
        fence: Its fence.
        tokens: How many, at least 1.
        request_id: Makes a retry safe; empty for none.
        wait_s: How long to wait for them; 0: not at all.
    """

    lease_id: str
    fence: int
    tokens: int
    request_id: str = ""
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRange:
    """The layers of one shard: from ``begin`` up to, not including, ``end``; none where they are equal."""

    shard: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentRequest:
    """A wish to move the layers of a split model.

    Attributes:
        namespace: Namespace of the model.
        group: Its name.
        plan_id: The suggestion to follow; empty for an assignment by hand.
        assignment: Layers by shard, each named once; empty: what the suggestion says.
    """

    namespace: str
    group: str
    plan_id: str = ""
    assignment: tuple[LayerRange, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimAck:
    """What a holder says about an order to give memory back.

    Attributes:
        reclaim_id: The order.
        freed_bytes: What has been freed for it so far.
        done: Nothing more will be freed.
    """

    reclaim_id: str
    freed_bytes: int = 0
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KvUsage:
    """What a KV engine reports."""

    active: bool
    resident_tokens: int
    demand_tokens: int | None
    lowest_running_priority: Priority
    freeable_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the holder of one lease says in a heartbeat.

    Attributes:
        lease_id: The lease.
        fence: The fence the holder knows.
        applied_revision: Newest directive it dealt with; 0 for none, or when it belongs to another server epoch.
        outcome: What became of that directive.
        achievable_quality: With REFUSED, the nearest quality it can reach.
        used_memory_bytes: What it counts as its own.
        kv: State of a KV engine.
        shard_latencies_us: Microseconds of each forward pass since the last report, above 0, newest last.
        busy_for_s: Silence it announces.
        reclaim_acks: What it says about orders to give memory back.
    """

    lease_id: LeaseId
    fence: int
    applied_revision: int = 0
    outcome: ReportOutcome = ReportOutcome.NONE
    achievable_quality: float | None = None
    used_memory_bytes: int | None = None
    kv: KvUsage | None = None
    shard_latencies_us: tuple[float, ...] = ()
    busy_for_s: float = 0.0
    reclaim_acks: tuple[ReclaimAck, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One heartbeat message of one worker."""

    worker: str = ""
    incarnation: int = 0
    sequence: int = 0
    handles: tuple[int, ...] = ()
    reports: tuple[Report, ...] = ()
