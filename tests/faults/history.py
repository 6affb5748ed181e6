"""What the audit events of one server must say of each other. Pure: events in, complaints out; none is good.

Every function looks at all events of a server in their order. They know nothing of what really happened, only whether
the story hangs together: each step has its cause before it and its end after it, and says why.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from arbiter.v1 import state_service_pb2 as pb

#: What may be said of a lease when it has ended.
_AFTER_END = {
    pb.EVENT_KIND_LEASE_DRAINED,
    pb.EVENT_KIND_RESIDUE_ALARM,
    pb.EVENT_KIND_PREEMPTION_SETTLED,
}
_UP = {"HEADROOM", "WORKER_REPORT"}
_DOWN = {"PRESSURE", "WORKER_REPORT"}


def complaints(events: Sequence[pb.Event]) -> list[str]:
    """Everything that is wrong with a history that is over: all leases have ended and drained, nobody waits."""
    return [
        *sequence_complaints(events),
        *lease_complaints(events),
        *request_complaints(events),
        *quality_complaints(events),
        *plan_complaints(events),
    ]


def sequence_complaints(events: Sequence[pb.Event]) -> Iterator[str]:
    """No event is missing."""
    for before, event in itertools.pairwise(events):
        if event.sequence != before.sequence + 1:
            yield f"event {event.sequence} follows {before.sequence}"
    yield from (f"gap at {event.sequence}" for event in events if event.kind == pb.EVENT_KIND_GAP)


def lease_complaints(events: Sequence[pb.Event]) -> Iterator[str]:
    """Every lease is granted, ends once with a reason, then drains once; nothing else is said of it after its end."""
    stage: dict[str, str] = {}
    for event in events:
        lease, name = event.lease_id, _name(event)
        if not lease:
            continue
        before = stage.get(lease, "")
        if event.kind == pb.EVENT_KIND_LEASE_GRANTED:
            if before:
                yield f"{name} although it was {before}"
            stage[lease] = "granted"
        elif not before:
            yield f"{name} although it was never granted"
        elif event.kind == pb.EVENT_KIND_LEASE_ENDED:
            if before != "granted":
                yield f"{name} although it was {before}"
            if not _field(event, "reason"):
                yield f"{name} without a reason"
            stage[lease] = "ended"
        elif event.kind == pb.EVENT_KIND_LEASE_DRAINED:
            if before != "ended":
                yield f"{name} although it was {before}"
            stage[lease] = "drained"
        elif before != "granted" and event.kind not in _AFTER_END:
            yield f"{name} although it was {before}"
    yield from (f"lease {lease} stays {last}" for lease, last in stage.items() if last != "drained")


def request_complaints(events: Sequence[pb.Event]) -> Iterator[str]:
    """Every request that waits says why, once, and has one outcome; a failure has a reason."""
    waiting: set[str] = set()
    settled: set[str] = set()
    for event in events:
        request, name = event.request_id, _name(event)
        if event.kind == pb.EVENT_KIND_REQUEST_WAITING:
            if request in waiting or request in settled:
                yield f"{name} for the second time"
            waiting.add(request)
        elif event.kind in (pb.EVENT_KIND_LEASE_GRANTED, pb.EVENT_KIND_REQUEST_FAILED):
            if request in settled:
                yield f"{name} although it had its outcome"
            if event.kind == pb.EVENT_KIND_REQUEST_FAILED and not (
                _field(event, "reason") and _field(event, "message")
            ):
                yield f"{name} without a reason"
            settled.add(request)
    yield from (f"request {request} still waits" for request in sorted(waiting - settled))


def quality_complaints(events: Sequence[pb.Event]) -> Iterator[str]:
    """Every change of quality begins where the last one ended, and its reason agrees with its direction.

    An order to give memory back lowers a lease too and is told by its own event; the chain begins anew after it.
    """
    quality: dict[str, float] = {}
    revision = 0
    for event in events:
        lease, name = event.lease_id, _name(event)
        if event.kind == pb.EVENT_KIND_LEASE_GRANTED:
            quality[lease] = float(_field(event, "quality"))
        elif event.kind == pb.EVENT_KIND_RECLAIM_REQUESTED:
            quality.pop(lease, None)
        elif event.kind == pb.EVENT_KIND_QUALITY_CHANGED:
            before, now, reason = (
                float(_field(event, "before")),
                float(_field(event, "quality")),
                _field(event, "reason"),
            )
            if quality.get(lease, before) != before:
                yield f"{name} from {before}, but it was told {quality[lease]}"
            if reason not in (_UP if now > before else _DOWN):
                yield f"{name} from {before} to {now} with reason {reason!r}"
            if int(_field(event, "revision")) <= revision:
                yield f"{name} with revision {event.fields['revision']} after {revision}"
            revision = int(_field(event, "revision"))
            quality[lease] = now


def plan_complaints(events: Sequence[pb.Event]) -> Iterator[str]:
    """Every order to give memory back belongs to an open plan, every plan is settled once, and one is open at a time.

    A lease that was taken had been asked before; an answer is to an order that was given.
    """
    open_plans: dict[str, str] = {}
    orders: set[str] = set()
    asked: set[str] = set()
    for event in events:
        plan, name = _field(event, "plan_id"), _name(event)
        if event.kind == pb.EVENT_KIND_PREEMPTION_PLANNED:
            if event.device_id in open_plans.values():
                yield f"{name} while another one is open"
            if not _field(event, "donors"):
                yield f"{name} without donors"
            open_plans[plan] = event.device_id
        elif event.kind == pb.EVENT_KIND_PREEMPTION_SETTLED:
            if open_plans.pop(plan, None) is None:
                yield f"{name} of {plan}, which is not open"
            if not int(_field(event, "credited_bytes")) <= int(_field(event, "confirmed_bytes")):
                yield f"{name} with more credited than confirmed"
        elif event.kind == pb.EVENT_KIND_RECLAIM_REQUESTED:
            if plan not in open_plans:
                yield f"{name} of {plan}, which is not open"
            orders.add(_field(event, "reclaim_id"))
            asked.add(event.lease_id)
        elif event.kind in (pb.EVENT_KIND_RECLAIM_ACKNOWLEDGED, pb.EVENT_KIND_RECLAIM_ESCALATED):
            if (order := _field(event, "reclaim_id")) not in orders:
                yield f"{name} to {order}, which was never ordered"
        elif _field(event, "reason") == "PREEMPTED" and event.lease_id not in asked:
            yield f"{name} by preemption, but it was never asked"
    yield from (f"plan {plan} is not settled" for plan in open_plans)


def outcomes(events: Sequence[pb.Event]) -> dict[str, str]:
    """Each request's outcome: granted, refused, timed_out or cancelled, the last also for a grant nobody received."""
    found: dict[str, str] = {}
    leases: dict[str, str] = {}
    for event in events:
        if event.kind == pb.EVENT_KIND_LEASE_GRANTED:
            found[event.request_id] = "granted"
            leases[event.lease_id] = event.request_id
        elif event.kind == pb.EVENT_KIND_REQUEST_FAILED:
            found[event.request_id] = {"WAIT_TIMEOUT": "timed_out", "CANCELLED": "cancelled"}.get(
                _field(event, "reason"), "refused"
            )
        elif event.kind == pb.EVENT_KIND_LEASE_ENDED and _field(event, "reason") == "UNDELIVERED":
            found[leases[event.lease_id]] = "cancelled"
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """One request in the line.

    Attributes:
        request: Its name.
        priority: With which it came.
        begun: Sequence of the event with which it came.
        ended: Sequence of the event with which it left the line.
        pinned: Memory was taken from others for it, which gives it the first place.
        granted: It left with a lease.
        waited: It was told to wait; else it was granted as it came.
    """

    request: str
    priority: int
    begun: int
    ended: int
    pinned: bool
    granted: bool
    waited: bool

    def precedes(self, other: Wait) -> bool:
        """Whether it may stand before the other in the line at some time while both are in it.

        Among requests of one priority, and against a less important one, whoever came first stays first: waiting lifts
        both at the same pace. A more important one, and one for which memory is being taken, may come before.
        """
        return self.pinned or self.begun < other.begun or self.priority > other.priority


def waits(events: Sequence[pb.Event], priorities: Mapping[str, int]) -> list[Wait]:
    """Everybody who waited or was granted at once, in the order of their outcomes."""
    pinned = {event.request_id for event in events if event.kind == pb.EVENT_KIND_PREEMPTION_PLANNED}
    begun: dict[str, int] = {}
    found = []
    for event in events:
        request = event.request_id
        if event.kind == pb.EVENT_KIND_REQUEST_WAITING:
            begun[request] = event.sequence
        elif event.kind in (pb.EVENT_KIND_LEASE_GRANTED, pb.EVENT_KIND_REQUEST_FAILED):
            granted = event.kind == pb.EVENT_KIND_LEASE_GRANTED
            if granted or request in begun:
                found.append(
                    Wait(
                        request=request,
                        priority=priorities[request],
                        begun=begun.get(request, event.sequence),
                        ended=event.sequence,
                        pinned=request in pinned,
                        granted=granted,
                        waited=request in begun,
                    )
                )
    return found


def overtaking_complaints(line: Sequence[Wait], backfill: int) -> Iterator[str]:
    """Nobody is passed more often than the rules of the line allow.

    A blocked head may be passed ``backfill`` times. One behind it may be passed as often for each that was head before
    it, and then as often itself. Grants to those who stand before it by right are not counted.
    """
    for each in line:
        if not each.waited:
            continue
        beside = [
            other for other in line if other is not each and other.begun < each.ended and other.ended > each.begun
        ]
        before = sum(other.waited and other.precedes(each) for other in beside)
        passes = sum(other.granted and other.ended < each.ended and not other.precedes(each) for other in beside)
        if passes > backfill * (1 + before):
            yield f"{each.request} was passed {passes} times, with {before} before it"


def _field(event: pb.Event, name: str) -> str:
    return event.fields.get(name, "")


def _name(event: pb.Event) -> str:
    kind = pb.EventKind.Name(event.kind).removeprefix("EVENT_KIND_")
    return f"event {event.sequence}: {kind} of {event.lease_id or event.request_id or event.device_id}"
