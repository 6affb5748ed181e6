"""Every metric that is served: one line each. ``docs/metrics.md`` says the same, and a test compares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric.

    Attributes:
        name: As it is served; that of a counter ends with ``_total``.
        kind: Its type.
        meaning: For people; one line.
        labels: Names of its labels, in order.
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()


#: All of them, in the order in which they are served.
CATALOGUE: list[Metric] = []


def _metric(kind: Kind, name: str, meaning: str, *labels: str) -> Metric:
    metric = Metric(name, kind, meaning, labels)
    CATALOGUE.append(metric)
    return metric


def _gauge(name: str, meaning: str, *labels: str) -> Metric:
    return _metric("gauge", f"arbiter_{name}", meaning, *labels)


def _counter(name: str, meaning: str, *labels: str) -> Metric:
    return _metric("counter", f"arbiter_{name}_total", meaning, *labels)


# The server -----------------------------------------------------------------------------------------------------------

BUILD = _gauge("build_info", "Always 1; which release runs, and on which Python", "version", "python_version")
EPOCH = _gauge("epoch", "Number of this start of the server")
UPTIME = _gauge("uptime_seconds", "Seconds since the start")
DRAINING = _gauge("draining", "1 while the server takes no new work because it is going away")
OBSERVE_ONLY = _gauge("observe_only", "1 where everything is decided and nothing is done")
SESSIONS = _gauge("sessions", "Open sessions")
SUBSCRIBERS = _gauge("stream_subscribers", "Open quality streams and sessions that hear of leases")
WATCHERS = _gauge("event_watchers", "Open streams of audit events")

# Devices --------------------------------------------------------------------------------------------------------------

DEVICE = _gauge("device_info", "Always 1; what a device is", "device", "name", "index", "kind", "attribution")
TOTAL = _gauge("device_total_bytes", "Size of the device", "device")
CAPACITY = _gauge("device_capacity_bytes", "Bytes that may be leased", "device")
TARGET = _gauge("device_target_bytes", "Bytes that quality targets aim to stay under", "device")
SOFT_DEFICIT = _gauge(
    "device_soft_deficit_bytes", "Bytes above the target that remain when everybody is at the minimum", "device"
)
GRANTED = _gauge("device_granted_bytes", "Bytes charged to living leases", "device")
MEASURED = _gauge("device_measured_bytes", "Bytes in use as measured; absent while unknown", "device")
FOREIGN = _gauge("device_foreign_bytes", "Measured bytes of processes without a lease", "device")
DRAINING_BYTES = _gauge("device_draining_bytes", "Bytes still held for leases that have ended", "device")
GHOST = _gauge("device_ghost_bytes", "Of these: kept past the drain grace by processes that live", "device")
ZOMBIE = _gauge("device_zombie_bytes", "Of these: kept past the drain grace although no process is left", "device")
OVERRUN = _gauge("device_overrun_bytes", "Bytes measured beyond what living leases are charged", "device")
UNUSED = _gauge("device_unused_bytes", "Bytes charged to living leases that are measured not to be used", "device")
EARMARKED = _gauge("device_earmarked_bytes", "Bytes that a preemption has freed and keeps for its requester", "device")
AVAILABLE = _gauge("device_available_bytes", "Bytes that could be promised now", "device")
PEAK = _gauge("device_peak_bytes", "The most that was taken at any time since the start", "device")
PRESSURE = _gauge("device_pressure_ratio", "How full the device is, from 0 to 1", "device")
LEVEL = _gauge("device_pressure_level", "1 for the level of its pressure, 0 for the others", "device", "level")
HEALTH = _gauge("device_health", "1 for the health of its measurements, 0 for the others", "device", "health")
SAMPLE_AGE = _gauge("device_sample_age_seconds", "Age of the newest sample; absent where there is none", "device")
DEVICE_LEASES = _gauge(
    "device_leases", "Leases by state; ended ones are those that still hold bytes", "device", "state"
)

# Leases ---------------------------------------------------------------------------------------------------------------

_LEASE = ("device", "namespace", "holder", "priority", "workload_type")
LEASES = _gauge("leases", "Living leases", *_LEASE)
LEASE_QUALITY = _gauge("lease_quality_ratio", "Mean published quality of living leases, from 0 to 1", *_LEASE)
LEASE_GRANTED = _gauge("lease_granted_bytes", "Bytes charged to living leases", *_LEASE)
LEASE_MEASURED = _gauge("lease_measured_bytes", "Bytes measured of those whose use is known; absent for none", *_LEASE)
LEASE_REPORTED = _gauge("lease_reported_bytes", "Bytes that those say they use who say it; absent for none", *_LEASE)

# The waiting line -----------------------------------------------------------------------------------------------------

WAITING = _gauge("waiting_requests", "Requests that wait for memory", "priority")
OLDEST_WAIT = _gauge("waiting_oldest_seconds", "How long the oldest of them has waited; 0 for none", "priority")

# What has happened ----------------------------------------------------------------------------------------------------

REQUESTS = _counter("allocation_requests", "Requests for leases, each call once")
OUTCOMES = _counter(
    "allocation_outcomes", "Requests by what became of them: granted, refused, timed_out, cancelled", "outcome"
)
ENDS = _counter("lease_ends", "Leases that ended by themselves: released, expired, orphaned", "reason")
PREEMPTIONS = _counter("preemptions", "Preemptions that got their requester what it asked for, memory or KV tokens")
REDUCTIONS = _counter("quality_reductions", "Published directives with a lower quality")
RAISES = _counter("quality_raises", "Published directives with a higher quality")
CRITICAL = _counter("pressure_critical_entries", "How often a device became critically full")
HEARTBEATS = _counter("heartbeats", "Heartbeats, in sessions and as calls")
EVENTS = _counter("events", "Audit events")

# What sharing cost each holder ----------------------------------------------------------------------------------------

_HOLDER = ("namespace", "holder")
RECLAIMS = _counter("holder_reclaims", "Orders to give memory or KV tokens back", *_HOLDER)
RECLAIM_SECONDS = _counter("holder_reclaim_seconds", "Time from order to confirmation, of those confirmed", *_HOLDER)
FLOOR_BREACHES = _counter("holder_floor_breaches", "Leases taken although a minimum was agreed", *_HOLDER)
QUALITY_LOST = _counter(
    "holder_quality_seconds_lost", "Time of its leases below their best quality, times how far below", *_HOLDER
)
GHOST_BYTE_SECONDS = _counter(
    "holder_ghost_byte_seconds", "Bytes kept past the drain grace of ended leases, times how long", *_HOLDER
)
OVERUSES = _counter("holder_overuses", "How often it was found to use clearly more than it leased", *_HOLDER)

# KV tokens ------------------------------------------------------------------------------------------------------------

KV_TOTAL = _gauge("device_kv_tokens", "KV tokens that the engines of the device share", "device")
KV_CHARGED = _gauge("device_kv_charged_tokens", "KV tokens that must be taken to be its engines'", "device")
KV_OPEN = _gauge("device_kv_reservations", "Open reservations of KV tokens", "device")
KV_WAITING = _gauge("device_kv_waiting_reservations", "Reservations of KV tokens that wait", "device")

_ENGINE = ("device", "namespace", "holder")
ENGINES = _gauge("kv_engines", "Living KV engines", *_ENGINE)
ENGINES_ACTIVE = _gauge("kv_active_engines", "Those that have work", *_ENGINE)
KV_SHARE = _gauge("kv_share_weight", "Their weight in the share of tokens", *_ENGINE)
KV_FLOOR = _gauge("kv_floor_tokens", "Tokens they were promised at least", *_ENGINE)
KV_CAP = _gauge("kv_cap_tokens", "Tokens they may have at most; absent where one of them has no such limit", *_ENGINE)
KV_DEMAND = _gauge("kv_demand_tokens", "Tokens they could use now; absent where none of them says", *_ENGINE)
KV_RESIDENT = _gauge("kv_resident_tokens", "Tokens they keep", *_ENGINE)
KV_RESERVED = _gauge("kv_reserved_tokens", "Tokens of their open reservations", *_ENGINE)
KV_BUDGET = _gauge("kv_budget_tokens", "Tokens they were told they may keep", *_ENGINE)
KV_ENGINE_CHARGED = _gauge("kv_charged_tokens", "Tokens that must be taken to be theirs", *_ENGINE)
KV_DONATED = _gauge("kv_donated_tokens", "Tokens they lend to others", *_ENGINE)
KV_BORROWED = _gauge("kv_borrowed_tokens", "Tokens they have from others", *_ENGINE)

# Calls, under the names that dashboards of gRPC servers look for -----------------------------------------------------

_CALL = ("grpc_type", "grpc_service", "grpc_method")
CALLS_STARTED = _metric("counter", "grpc_server_started_total", "Calls that have begun", *_CALL)
CALLS_HANDLED = _metric("counter", "grpc_server_handled_total", "Calls that have ended, by code", *_CALL, "grpc_code")
CALL_SECONDS = _metric(
    "histogram",
    "grpc_server_handling_seconds",
    "Time from a parsed call to its answer, waiting included; unary calls only",
    *_CALL,
)
