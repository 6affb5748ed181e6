"""Operations of the journal as rows of its file, and rows as records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from arbiter_sidecar.adapters import journal_words
from arbiter_sidecar.ports import (
    EventHappened,
    EventRecord,
    GraveRecord,
    JournalOperation,
    LeaseConfirmed,
    LeaseDrained,
    LeaseEnded,
    LeaseOpened,
    LeaseRecord,
    LeaseResized,
    PlanEnded,
    PlanOpened,
    PlanRecord,
)
from arbiter_sidecar.types import DeviceId, EndReason, EventKind, LeaseId

if TYPE_CHECKING:
    import sqlite3

#: Fences of a device are taken from the file in blocks: one write for so many grants.
FENCE_BLOCK = 1024
#: Audit events that are kept.
MAX_EVENTS = 10_000
#: Graves that are kept.
MAX_GRAVES = 20_000
#: So many more may gather before the oldest are removed.
SPARE_ROWS = 512

_LEASE = (
    *("lease_id", "handle", "fence", "device_id", "request", "created_at", "quality", "limit_bytes", "charged_bytes"),
    *("credit_bytes", "kv_budget", "kv_charged", "confirmed", "end_reason", "ended_at", "residue_bytes"),
)
#: Columns that hold a number too large for a row, a whole record or an enumeration.
_CONVERTED = frozenset({"handle", "request", "end_reason"})
_INSERT_LEASE = "INSERT INTO lease (namespace, {}) VALUES (:namespace, {})".format(
    ", ".join(_LEASE), ", ".join(f":{name}" for name in _LEASE)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Everything in a file; fields as in ``ports.Recovered``."""

    leases: tuple[LeaseRecord, ...]
    graves: tuple[GraveRecord, ...]
    requests: dict[tuple[str, str], LeaseId]
    fences: dict[DeviceId, int]
    plans: tuple[PlanRecord, ...]
    events: tuple[EventRecord, ...]


def lease_of(operation: JournalOperation) -> LeaseId | None:
    """The lease a fact is about; ``None`` for an opening, and for facts about other things."""
    if isinstance(operation, LeaseConfirmed | LeaseResized | LeaseEnded | LeaseDrained):
        return operation.lease_id
    return None


def write(connection: sqlite3.Connection, operation: JournalOperation) -> None:
    """Writes one operation as part of the open transaction.

    Raises:
        sqlite3.Error: It was not written.
        ValueError: It cannot be said in rows.
        OverflowError: A number has more than 63 bits.
    """
    match operation:
        case LeaseOpened(lease):
            _open(connection, lease)
        case LeaseConfirmed(lease_id):
            connection.execute("UPDATE lease SET confirmed = 1 WHERE lease_id = ? AND end_reason = 0", (lease_id,))
        case LeaseResized():
            _resize(connection, operation)
        case LeaseEnded():
            connection.execute(
                "UPDATE lease SET end_reason = ?, ended_at = ?, residue_bytes = ?"
                " WHERE lease_id = ? AND end_reason = 0",
                (int(operation.reason), operation.ended_at, operation.residue_bytes, operation.lease_id),
            )
        case LeaseDrained(lease_id, drained_at):
            _bury(connection, lease_id, drained_at)
        case PlanOpened(plan):
            connection.execute(
                "INSERT OR REPLACE INTO plan (plan_id, content) VALUES (?, ?)",
                (plan.plan_id, journal_words.text(plan)),
            )
        case PlanEnded(plan_id):
            connection.execute("DELETE FROM plan WHERE plan_id = ?", (plan_id,))
        case EventHappened(event):
            _event(connection, event)


def _open(connection: sqlite3.Connection, lease: LeaseRecord) -> None:
    connection.execute(
        "INSERT INTO fence (device_id, reserved) VALUES (:device_id, :fence + :block - 1) ON CONFLICT (device_id)"
        " DO UPDATE SET reserved = excluded.reserved WHERE reserved < :fence",
        {"device_id": lease.device_id, "fence": lease.fence, "block": FENCE_BLOCK},
    )
    plain = {name: getattr(lease, name) for name in _LEASE if name not in _CONVERTED}
    connection.execute(
        _INSERT_LEASE,
        plain
        | {
            "handle": str(lease.handle),
            "namespace": lease.request.namespace,
            "request": journal_words.text(lease.request),
            "end_reason": int(lease.end_reason),
        },
    )
    if lease.request.request_id:
        connection.execute(
            "INSERT OR REPLACE INTO idempotency (namespace, request_id, lease_id) VALUES (?, ?, ?)",
            (lease.request.namespace, lease.request.request_id, lease.lease_id),
        )


def _resize(connection: sqlite3.Connection, resized: LeaseResized) -> None:
    connection.execute(
        "UPDATE lease SET quality = ?, limit_bytes = ?, charged_bytes = ?, credit_bytes = ?, kv_budget = ?,"
        " kv_charged = ? WHERE lease_id = ? AND end_reason = 0",
        (
            resized.quality,
            resized.limit_bytes,
            resized.charged_bytes,
            resized.credit_bytes,
            resized.kv_budget,
            resized.kv_charged,
            resized.lease_id,
        ),
    )


def _bury(connection: sqlite3.Connection, lease_id: LeaseId, drained_at: float) -> None:
    cursor = connection.execute(
        "INSERT INTO grave (lease_id, handle, fence, device_id, namespace, end_reason, drained_at)"
        " SELECT lease_id, handle, fence, device_id, namespace, end_reason, ? FROM lease"
        " WHERE lease_id = ? AND end_reason <> 0",
        (drained_at, lease_id),
    )
    if cursor.rowcount:
        connection.execute("DELETE FROM lease WHERE lease_id = ?", (lease_id,))
        _trim(connection, "grave", cursor.lastrowid or 0, MAX_GRAVES)


def _event(connection: sqlite3.Connection, event: EventRecord) -> None:
    cursor = connection.execute(
        "INSERT OR REPLACE INTO event"
        " (sequence, wall_time, kind, lease_id, request_id, device_id, holder, namespace, fields)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            event.sequence,
            event.wall_time,
            int(event.kind),
            event.lease_id,
            event.request_id,
            event.device_id,
            event.holder,
            event.namespace,
            journal_words.text(event.fields),
        ),
    )
    _trim(connection, "event", cursor.lastrowid or 0, MAX_EVENTS)


def _trim(connection: sqlite3.Connection, table: str, newest: int, most: int) -> None:
    """Removes the oldest rows now and then; rows are numbered without gaps."""
    if newest % SPARE_ROWS == 0:
        connection.execute(f"DELETE FROM {table} WHERE number <= ?", (newest - most,))


def read(connection: sqlite3.Connection) -> Content:
    """Reads everything.

    Raises:
        sqlite3.Error: It cannot be read.
        ValueError: A row is not what is written here.
    """
    return Content(
        leases=_leases(connection),
        graves=_graves(connection),
        requests={
            (namespace, request_id): LeaseId(lease_id)
            for namespace, request_id, lease_id in connection.execute(
                "SELECT namespace, request_id, lease_id FROM idempotency"
            )
        },
        fences={
            DeviceId(device_id): reserved
            for device_id, reserved in connection.execute("SELECT device_id, reserved FROM fence")
        },
        plans=tuple(
            journal_words.plan(content) for (content,) in connection.execute("SELECT content FROM plan ORDER BY rowid")
        ),
        events=_events(connection),
    )


def _leases(connection: sqlite3.Connection) -> tuple[LeaseRecord, ...]:
    rows = connection.execute(f"SELECT {', '.join(_LEASE)} FROM lease ORDER BY number")
    return tuple(
        LeaseRecord(
            lease_id=LeaseId(row[0]),
            handle=int(row[1]),
            fence=row[2],
            device_id=DeviceId(row[3]),
            request=journal_words.request(row[4]),
            created_at=row[5],
            quality=row[6],
            limit_bytes=row[7],
            charged_bytes=row[8],
            credit_bytes=row[9],
            kv_budget=row[10],
            kv_charged=row[11],
            confirmed=bool(row[12]),
            end_reason=EndReason(row[13]),
            ended_at=row[14],
            residue_bytes=row[15],
        )
        for row in rows
    )


def _graves(connection: sqlite3.Connection) -> tuple[GraveRecord, ...]:
    rows = connection.execute(
        "SELECT lease_id, handle, fence, device_id, namespace, end_reason, drained_at FROM"
        " (SELECT * FROM grave ORDER BY number DESC LIMIT ?) ORDER BY number",
        (MAX_GRAVES,),
    )
    return tuple(
        GraveRecord(
            lease_id=LeaseId(row[0]),
            handle=int(row[1]),
            fence=row[2],
            device_id=DeviceId(row[3]),
            namespace=row[4],
            end_reason=EndReason(row[5]),
            drained_at=row[6],
        )
        for row in rows
    )


def _events(connection: sqlite3.Connection) -> tuple[EventRecord, ...]:
    rows = connection.execute(
        "SELECT sequence, wall_time, kind, lease_id, request_id, device_id, holder, namespace, fields FROM"
        " (SELECT * FROM event ORDER BY number DESC LIMIT ?) ORDER BY number",
        (MAX_EVENTS,),
    )
    return tuple(
        EventRecord(
            sequence=row[0],
            wall_time=row[1],
            kind=EventKind(row[2]),
            lease_id=row[3],
            request_id=row[4],
            device_id=row[5],
            holder=row[6],
            namespace=row[7],
            fields=journal_words.mapping(row[8]),
        )
        for row in rows
    )
