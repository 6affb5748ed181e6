"""The words every floor shares: identifiers, enumerations and the plain values that travel between floors.

Bytes, tokens and counts are integers; quality is a float in [0,1]; times are monotonic seconds as floats, spans are
seconds. Enumerations carry the numbers of their protobuf counterparts, so that crossing the edge is a cast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NewType

LeaseId = NewType("LeaseId", str)
DeviceId = NewType("DeviceId", str)
Ticket = NewType("Ticket", int)

MIB = 1024 * 1024
GIB = 1024 * MIB


class WorkloadType(IntEnum):
    """What a worker does with its memory."""

    LLM_INFERENCE = 1
    IMAGE_GENERATION = 2
    VIDEO_GENERATION = 3
    OTHER = 4


class Priority(IntEnum):
    """Who may take from whom; the distance of two members is the preemption gap."""

    BACKGROUND = 1
    LOW = 2
    NORMAL = 3
    HIGH = 4
    CRITICAL = 5


class LeaseState(IntEnum):
    """Authority of a lease: may its holder use the memory?"""

    GRANTED = 1
    ACTIVE = 2
    SUSPECT = 3
    RECLAIMING = 4
    ENDED = 5


class EndReason(IntEnum):
    """Why a lease ended; NONE while it lives."""

    NONE = 0
    RELEASED = 1
    EXPIRED = 2
    ORPHANED = 3
    PREEMPTED = 4
    REVOKED = 5
    UNDELIVERED = 6
    DEVICE_LOST = 7


class DirectiveReason(IntEnum):
    """Why a directive says what it says."""

    GRANT = 1
    PRESSURE = 2
    HEADROOM = 3
    PREEMPTION = 4
    CONFIG = 5
    WORKER_REPORT = 6
    KV_BUDGET = 7
    SHARD_ASSIGNMENT = 8
    OVERUSE = 9


class ReportOutcome(IntEnum):
    """What a worker made of a directive."""

    NONE = 0
    APPLIED = 1
    DEFERRED = 2
    REFUSED = 3


class Verdict(IntEnum):
    """What the arbiter made of one lease in a heartbeat."""

    RENEWED = 1
    FENCED = 2
    NOT_FOUND = 3
    DENIED = 4


class DeviceKind(IntEnum):
    """Kind of a device."""

    NVIDIA = 1
    AMD = 2
    HOST = 3
    STATIC = 4


class Attribution(IntEnum):
    """How measured memory is attributed to leases."""

    PER_PROCESS = 1
    TRANSLATED = 2
    DEVICE_ONLY = 3
    SELF_REPORTED = 4


class DeviceHealth(IntEnum):
    """Health of a device's measurements."""

    UNKNOWN = 0
    OK = 1
    STALE = 2
    LOST = 3


class PressureLevel(IntEnum):
    """How full a device is."""

    LOW = 1
    MODERATE = 2
    HIGH = 3
    CRITICAL = 4


class ReclaimLevel(IntEnum):
    """How urgent an order to give memory back is."""

    SOFT = 1
    HARD = 2


class DonationOutcome(IntEnum):
    """What became of a donation; OPEN while it is under way."""

    OPEN = 0
    CONFIRMED = 1
    PARTIAL = 2
    REVOKED = 3
    CANCELLED = 4


class EventKind(IntEnum):
    """Kinds of audit events."""

    LEASE_GRANTED = 1
    LEASE_CONFIRMED = 2
    LEASE_SUSPECT = 3
    LEASE_ENDED = 4
    LEASE_DRAINED = 5
    QUALITY_CHANGED = 6
    DIRECTIVE_APPLIED = 7
    DIRECTIVE_REFUSED = 8
    REQUEST_WAITING = 9
    REQUEST_FAILED = 10
    PRESSURE_CHANGED = 11
    DEVICE_CHANGED = 12
    PAUSE_ABSORBED = 13
    DRAINING = 14
    GAP = 15
    RESIDUE_ALARM = 16
    PREEMPTION_PLANNED = 17
    RECLAIM_REQUESTED = 18
    RECLAIM_ACKNOWLEDGED = 19
    RECLAIM_ESCALATED = 20
    PREEMPTION_SETTLED = 21
    RESUMED = 22
    OVERUSE_FOUND = 23
    OVERUSE_ENDED = 24
    QUALITY_ADVISED = 25
    GRANT_ADVISED = 26
    PREEMPTION_ADVISED = 27
    KV_BUDGET_CHANGED = 28
    KV_RESERVATION_EXPIRED = 29
    BALANCE_SUGGESTED = 30
    BALANCE_APPLIED = 31
    SHARD_STATE_CHANGED = 32
    BALANCE_BEGUN = 33
    KV_BUDGET_ADVISED = 34


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be confused with a later one of the same id.

    Attributes:
        pid: Process id as this process sees it.
        start_time: Kernel start time in clock ticks since boot.
    """

    pid: int
    start_time: int


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What does not change about a device while it is there.

    Attributes:
        device_id: UUID of a GPU, "host", or the configured name.
        name: For people.
        index: Place in the machine, for display only.
        kind: Kind.
        total_bytes: Physical size, or the configured one.
        capacity_bytes: What may be leased: total less the reserve, or exactly what was configured.
        attribution: What the start-up self-check found.
    """

    device_id: DeviceId
    name: str
    index: int
    kind: DeviceKind
    total_bytes: int
    capacity_bytes: int
    attribution: Attribution


@dataclass(frozen=True, slots=True)
class Guest:
    """What the tree of a process without a lease was measured to hold on a device.

    Attributes:
        held_bytes: Its use, without that of holders below it.
        foreign_bytes: What of it the same sample counts as foreign use; in [0, held_bytes].
    """

    held_bytes: int
    foreign_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """What was measured on one device at one moment. ``None`` is unknown and never zero.

    Attributes:
        device_id: The device.
        used_bytes: Use of the whole device.
        held_bytes: Use of each holder's process tree that was asked for; a holder with a ``None`` value could not be
            read, one with 0 holds nothing.
        foreign_bytes: Use of everything that no holder's tree accounts for; ``None``: derive it from the totals.
        machine_available_bytes: Memory the machine could still give; only host memory has it.
        lost: The device is gone.
        detail: What went wrong, for people; empty when nothing did.
        guests: Use of each process that was asked for as a guest and could be read; what is in a holder's tree is that
            holder's, and not the guest's.
    """

    device_id: DeviceId
    used_bytes: int | None
    held_bytes: Mapping[Process, int | None] = field(default_factory=dict)
    foreign_bytes: int | None = None
    machine_available_bytes: int | None = None
    lost: bool = False
    detail: str = ""
    guests: Mapping[Process, Guest] = field(default_factory=dict)
