"""Callers who want memory taken from others: who may ask for what, whose turn it is, and what a retry hears.

One preemption at a time is under way on a device. Others wait for their turn, the most important first.
"""

from __future__ import annotations

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import effects, preempting
from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.arbiter.preempting import Wish
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.plans import MAX_ASKED, Asked
from arbiter_sidecar.policy import preemption
from arbiter_sidecar.requests import PreemptionRequest
from arbiter_sidecar.types import Priority, Ticket


def ask(books: Books, request: PreemptionRequest, ticket: Ticket, now: float) -> DeviceBook:
    """Takes a caller's request in; returns the device it is about. The answer comes as ``PlanClosed``.

    Raises:
        LeaseNotFound: The lease that asks is unknown or has ended.
        DeviceNotFound: There is no such device.
        InvalidRequest: Neither lease nor device is named, or the priority is above the lease's.
        IdempotencyMismatch: The request id was used with other arguments.
        NoDonor: Those who may be asked have too little.
        QueueFull: Too many wait for their turn already.
    """
    wish = wish_of(books, request, now)
    known = _known(books, wish, request, now)
    if known is not None:
        _join(books, known, ticket)
        return wish.device
    if len(books.asks.waiting) >= MAX_ASKED:
        raise errors.QueueFull(f"{MAX_ASKED} preemptions wait for their turn already")
    asked = Asked(
        number=ticket,
        request=request,
        device_id=wish.device.device_id,
        priority=wish.priority,
        deadline=now + books.config.preemption.turn_s,
    )
    asked.tickets.append(ticket)
    if _free(books, wish.device, wish.priority, now) and books.asks.first(wish.device.device_id) is None:
        _start(books, asked, wish, now)
    else:
        books.asks.waiting[asked.number] = asked
        books.later(asked.deadline, "unask", asked)
    books.asks.remember(asked)
    return wish.device


def _known(books: Books, wish: Wish, request: PreemptionRequest, now: float) -> Asked | None:
    """An earlier call that this one repeats: by its name, or because its lease asks already."""
    known = books.asks.named(request, now)
    if known is not None:
        if known.request != request:
            raise errors.IdempotencyMismatch(request_id=request.request_id)
        return known
    plan = wish.device.plan
    if plan is None or wish.requester is None or plan.requester is not wish.requester or request.request_id:
        return None
    return plan.asked


def _join(books: Books, asked: Asked, ticket: Ticket) -> None:
    if asked.closed_at is None:
        asked.tickets.append(ticket)
    else:
        books.pending.append(effects.PlanClosed(ticket, asked.plan, asked.error))


def _free(books: Books, device: DeviceBook, priority: Priority, now: float) -> bool:
    """Whether a preemption may begin: none is under way, nobody is starting up, nobody more important needs one."""
    if device.plan is not None or device.fenced_by(now) is not None:
        return False
    return not any(
        waiter.device_id == device.device_id and waiter.request.may_preempt and waiter.request.priority > priority
        for waiter in books.queue
    )


def _start(books: Books, asked: Asked, wish: Wish, now: float) -> None:
    chosen = preempting.draft(books, wish, now)
    if chosen.refused:
        raise refusal(wish, chosen)
    plan = asked.plan = preempting.begin(books, wish, chosen, now)
    plan.asked = asked


def next_turn(books: Books, device: DeviceBook, now: float) -> None:
    """Begins the preemption whose turn it is on a device, if there is one that may."""
    while (asked := books.asks.first(device.device_id)) is not None and _free(books, device, asked.priority, now):
        del books.asks.waiting[asked.number]
        try:
            _start(books, asked, wish_of(books, asked.request, now), now)
        except errors.ArbiterError as error:
            preempting.answer(books, asked, error, now)


def leave(books: Books, ticket: Ticket, now: float) -> DeviceBook | None:
    """A caller has gone. When nobody is left that waits for a preemption its donors are let off.

    Returns:
        The device on which something has changed.
    """
    for device in books.devices.values():
        plan = device.plan
        if plan is not None and plan.asked is not None and ticket in plan.asked.tickets:
            plan.asked.tickets.remove(ticket)
            if plan.asked.tickets:
                return None
            preempting.close(books, plan, now, withdrawn=errors.Cancelled())
            return device
    for asked in books.asks.waiting.values():
        if ticket in asked.tickets:
            asked.tickets.remove(ticket)
            if not asked.tickets:
                del books.asks.waiting[asked.number]
                preempting.answer(books, asked, errors.Cancelled(), now)
            return None
    return None


def time_out(books: Books, asked: Asked, now: float) -> None:
    """A request has waited for its turn long enough."""
    if books.asks.waiting.pop(asked.number, None) is not None:
        waited = books.config.preemption.turn_s
        error = errors.WaitTimeout(
            f"another preemption was under way on the device for {waited:g} s; try again",
            waited_ms=round(waited * 1000),
            device_id=asked.device_id,
        )
        preempting.answer(books, asked, error, now)


def shut(books: Books, now: float) -> None:
    """The server drains: nobody's turn comes any more."""
    waiting, books.asks.waiting = books.asks.waiting, {}
    for asked in waiting.values():
        preempting.answer(books, asked, errors.ShuttingDown(), now)


def wish_of(books: Books, asked: PreemptionRequest, now: float) -> Wish:
    """What a caller's request comes to.

    Raises:
        LeaseNotFound: The lease is unknown or has ended.
        DeviceNotFound: There is no such device.
        InvalidRequest: Neither lease nor device is named, the lease is elsewhere, or the priority is above the lease's.
    """
    requester = None
    if asked.lease_id:
        requester = books.leases.get(asked.lease_id)
        if requester is None or not requester.alive or requester.deadline <= now:
            raise errors.LeaseNotFound(f"no living lease {asked.lease_id!r}", lease_id=asked.lease_id)
    device_id = asked.device_id or (requester.device_id if requester is not None else "")
    if not device_id:
        raise errors.InvalidRequest([("device_id", "is required without a lease_id")])
    device = next((each for each in books.devices.values() if each.device_id == device_id), None)
    if device is None:
        raise errors.DeviceNotFound(device_id=device_id)
    own = requester.request.priority if requester is not None else Priority.NORMAL
    if requester is not None and requester.device_id != device_id:
        raise errors.InvalidRequest([("device_id", f"the lease is on {requester.device_id}")])
    if requester is not None and asked.priority is not None and asked.priority > own:
        raise errors.InvalidRequest([("priority", f"is above that of the lease, {own.name}")])
    return Wish(
        device=device,
        requester=requester,
        priority=own if asked.priority is None else asked.priority,
        need_bytes=asked.need_bytes,
        grace_s=books.config.preemption.grace_s if asked.grace_s is None else asked.grace_s,
        partial=asked.allow_partial,
    )


def refusal(wish: Wish, chosen: preemption.Plan) -> errors.NoDonor:
    """Why nobody is asked."""
    told = ", ".join(f"{lease_id}: {reason.value}" for lease_id, reason in chosen.reasons.items())
    return errors.NoDonor(
        f"{wish.need_bytes} bytes are needed, {chosen.available} could be taken at most ({told or 'no lease'})",
        needed=wish.need_bytes,
        available=chosen.available,
        device_id=wish.device.device_id,
    )
