"""What the runtime needs from the outside; adapters implement it, tests replace it at this height and no higher."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import (
    DeviceFacts,
    DeviceId,
    DeviceSample,
    EndReason,
    EventKind,
    LeaseId,
    Priority,
    Process,
)


class Clock(Protocol):
    """The clocks of the machine."""

    def now(self) -> float:
        """Monotonic seconds; every decision uses this. Stands still while the machine sleeps, as its workers do."""

    def slept(self) -> float:
        """Seconds that the machine has been suspended since it booted; grows by each sleep, and only then."""

    def wall(self) -> float:
        """Seconds since 1970; shown to people, never decided upon."""


class DeviceProbe(Protocol):
    """Asks one device. Calls may block, so they are made in the probe thread only."""

    @property
    def facts(self) -> DeviceFacts:
        """What was found out when the probe was made."""

    def sample(self, holders: Sequence[Process], guests: Sequence[Process] = ()) -> DeviceSample:
        """Measures the device and the process trees under ``holders``, and those under ``guests`` beside them.

        Guests hold no lease here, so their memory is as foreign as it would be if nobody had asked; one that cannot be
        read is left out.

        Raises:
            OSError: The driver or kernel could not be asked; the caller keeps the last sample and marks it stale.
        """

    def close(self) -> None:
        """Lets go of the driver."""


class ProcessWatch(Protocol):
    """Knows processes and notices their death. Used on the event loop's thread; never blocks."""

    def identify(self, pid: int) -> Process | None:
        """The process that has this id now; ``None`` when there is none that we can see."""

    def watch(self, process: Process, on_exit: Callable[[Process], None]) -> bool:
        """Calls ``on_exit`` once, on the event loop, when ``process`` has exited; False when it is gone already.

        Watching the same process twice is allowed and calls back twice.
        """

    def signal(self, process: Process, number: int) -> bool:
        """Sends a signal to a process; False when it has gone or may not be signalled. Never hits another process."""

    def unwatch(self, process: Process) -> None:
        """Forgets every watch of ``process``; unknown ones are fine."""

    def close(self) -> None:
        """Forgets everything."""


# The journal ----------------------------------------------------------------------------------------------------------
# Times in it are wall time, for people only: whoever restores computes deadlines anew from spans.


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """A lease as it must be known after a restart: whatever cannot be measured or asked again.

    Attributes:
        lease_id: Its id.
        handle: Its number on the wire, in [1, 2^64).
        fence: Its fence.
        device_id: The device.
        request: What was asked for; it has the time to live, the processes, the holder and all bounds.
        created_at: When it was granted, seconds since 1970.
        quality: The published quality.
        limit_bytes: Bytes at that quality: what was granted.
        charged_bytes: Bytes the books hold for it.
        credit_bytes: Bytes that preemption has added to what was asked for.
        kv_budget: Tokens it was told it may keep.
        kv_charged: Tokens that must be taken to be its own.
        confirmed: Its holder has been heard of.
        end_reason: Why it ended; NONE while it lives.
        ended_at: When it ended, seconds since 1970; 0 while it lives.
        residue_bytes: What it was taken to hold when it ended.
    """

    lease_id: LeaseId
    handle: int
    fence: int
    device_id: DeviceId
    request: AllocationRequest
    created_at: float
    quality: float
    limit_bytes: int
    charged_bytes: int
    credit_bytes: int = 0
    kv_budget: int = 0
    kv_charged: int = 0
    confirmed: bool = False
    end_reason: EndReason = EndReason.NONE
    ended_at: float = 0.0
    residue_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GraveRecord:
    """What late callers are told of a lease whose bytes are gone; ``drained_at`` is in seconds since 1970."""

    lease_id: LeaseId
    handle: int
    fence: int
    device_id: DeviceId
    namespace: str
    end_reason: EndReason
    drained_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DonationRecord:
    """What one lease was asked to give: ``planned`` is in bytes, or in tokens where the plan is about tokens."""

    reclaim_id: str
    lease_id: LeaseId
    planned: int
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """An open preemption.

    Attributes:
        plan_id: Its name.
        device_id: The device.
        tokens: It is about KV tokens, not bytes.
        requester: The lease that asks; empty for a waiting request, a person, or the machine itself.
        request_id: What the caller calls its request; empty for nothing.
        priority: With which it asks.
        need: What is needed, in bytes or tokens.
        partial: Less is welcome.
        machine: The machine itself is short: nobody asked.
        grace_s: Time from a notice to its deadline.
        opened_at: When it began, seconds since 1970.
        donations: Who was asked, in that order.
    """

    plan_id: str
    device_id: DeviceId
    priority: Priority
    need: int
    opened_at: float
    tokens: bool = False
    requester: str = ""
    request_id: str = ""
    partial: bool = False
    machine: bool = False
    grace_s: float = 0.0
    donations: tuple[DonationRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """An audit event; ``sequence`` grows from 1, ``wall_time`` is in seconds since 1970."""

    sequence: int
    wall_time: float
    kind: EventKind
    lease_id: str = ""
    request_id: str = ""
    device_id: str = ""
    holder: str = ""
    namespace: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LeaseOpened:
    """A lease was granted. The only operation that is a promise: it can be refused, and is then as if never made.

    Its request id, where it has one, leads to it from then on.
    """

    lease: LeaseRecord


@dataclass(frozen=True, slots=True)
class LeaseConfirmed:
    """The holder was heard of for the first time. Later heartbeats are never written."""

    lease_id: LeaseId


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseResized:
    """A living lease was told something else, or its charge has changed; fields as in ``LeaseRecord``."""

    lease_id: LeaseId
    quality: float
    limit_bytes: int
    charged_bytes: int
    credit_bytes: int = 0
    kv_budget: int = 0
    kv_charged: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnded:
    """The authority of a lease is over; its bytes may still be there. It never lives again."""

    lease_id: LeaseId
    reason: EndReason
    ended_at: float
    residue_bytes: int


@dataclass(frozen=True, slots=True)
class LeaseDrained:
    """The bytes of an ended lease are gone: only its grave is kept."""

    lease_id: LeaseId
    drained_at: float


@dataclass(frozen=True, slots=True)
class PlanOpened:
    """A preemption began, or asks somebody else or for something else than before."""

    plan: PlanRecord


@dataclass(frozen=True, slots=True)
class PlanEnded:
    """A preemption is over."""

    plan_id: str


@dataclass(frozen=True, slots=True)
class EventHappened:
    """An audit event. The newest are kept; an older one of the same number is replaced."""

    event: EventRecord


JournalOperation = (
    LeaseOpened | LeaseConfirmed | LeaseResized | LeaseEnded | LeaseDrained | PlanOpened | PlanEnded | EventHappened
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What a journal knew when it was opened.

    Attributes:
        epoch: The epoch of this run, above every earlier one; it is on the disk already.
        leases: Those that lived or drained, in order of grant.
        graves: Those that had gone, in order of going.
        requests: Which lease a namespace's request id led to last, while that lease lives or drains.
        fences: Of each device a number that no fence has been above; new ones must be.
        plans: Preemptions that were open.
        events: The newest audit events, in order.
        rebooted: It was written before the machine was started anew: no lease, grave or plan is left of that.
        dropped: How many leases were dropped for that.
        set_aside: Where the damaged file was moved that was found instead of a journal; empty when there was none. What
            it knew is lost.
    """

    epoch: int
    leases: tuple[LeaseRecord, ...] = ()
    graves: tuple[GraveRecord, ...] = ()
    requests: Mapping[tuple[str, str], LeaseId] = field(default_factory=dict)
    fences: Mapping[DeviceId, int] = field(default_factory=dict)
    plans: tuple[PlanRecord, ...] = ()
    events: tuple[EventRecord, ...] = ()
    rebooted: bool = False
    dropped: int = 0
    set_aside: str = ""


class JournalError(OSError):
    """What should be kept is not on the disk. ``errno`` says what kind of trouble it is, where that is known."""


class JournalFull(JournalError):
    """The disk does not keep up, so no more promises are taken."""


class Journal(Protocol):
    """Keeps what must survive the end of this process. Used on the event loop's thread; only ``open`` blocks."""

    @property
    def healthy(self) -> bool:
        """Whether a promise made now would soon be on the disk. Turns true again by itself when the disk recovers."""

    def open(self) -> Recovered:
        """Reads what is there and begins a new epoch, durably.

        Raises:
            JournalError: It cannot be read or written, or a newer release has written it. Nothing has changed then.
        """

    def append(self, operations: Sequence[JournalOperation]) -> Awaitable[None]:
        """Takes operations in, in order and at once; they are written all or none. What it returns waits for the disk.

        Awaiting it, or not, changes nothing about what is written. After an error a lease that was to be opened is not
        in the journal and will not be, and whatever else was said is kept in memory and written as soon as possible:
        what has happened cannot be refused. Facts about leases that are not in the journal are dropped.

        Raises:
            JournalError: When awaited: the disk has not taken it.
            ValueError: At once, and nothing was taken in: a lease is opened twice, or its fence is not above all
                earlier ones of its device.
        """

    async def close(self) -> None:
        """Writes what is left, merges it into one file and ends.

        Raises:
            JournalError: It could not; what is missing is lost.
        """
