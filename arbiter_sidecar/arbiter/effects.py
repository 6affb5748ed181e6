"""What the core wants the outside to do. The runtime carries each out, in order, before anything else happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from arbiter_sidecar.errors import ArbiterError
from arbiter_sidecar.ledger.kv import KvPlan, Reservation
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.plans import Plan
from arbiter_sidecar.ledger.shards import ShardGroup
from arbiter_sidecar.types import EventKind, Ticket


@dataclass(frozen=True, slots=True)
class Granted:
    """The caller of this ticket has a lease."""

    ticket: Ticket
    lease: Lease
    waited_s: float
    already_granted: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """The caller of this ticket gets an error."""

    ticket: Ticket
    error: ArbiterError


@dataclass(frozen=True, slots=True)
class Opened:
    """A new lease lives: watch its processes."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class DirectiveChanged:
    """The holder must hear the lease's new directive."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Ended:
    """The holder must hear that the lease is over; its memory is still watched."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Drained:
    """The bytes of an ended lease are gone; forget its processes."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class ReclaimCancelled:
    """The holder need not give back any more."""

    lease: Lease
    reclaim_id: str


@dataclass(frozen=True, slots=True)
class PlanClosed:
    """A preemption has ended, or never began: then it has no plan.

    ``error`` is ``None`` when the caller got what it asked for.
    """

    ticket: Ticket
    plan: Plan | KvPlan | None
    error: ArbiterError | None


@dataclass(frozen=True, slots=True)
class Reserved:
    """The caller of this ticket has a KV reservation."""

    ticket: Ticket
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class ReservationRefused:
    """The caller of this ticket has none."""

    ticket: Ticket
    error: ArbiterError


@dataclass(frozen=True, slots=True)
class ShardsChanged:
    """Something about a split model has changed that people watch."""

    group: ShardGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """An audit event."""

    kind: EventKind
    lease_id: str = ""
    request_id: str = ""
    device_id: str = ""
    holder: str = ""
    namespace: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


Effect = (
    Granted
    | Refused
    | Opened
    | DirectiveChanged
    | Ended
    | Drained
    | ReclaimCancelled
    | PlanClosed
    | Reserved
    | ReservationRefused
    | ShardsChanged
    | Happened
)
