"""Whose turn it is to take something from others, and what a retry hears.

One preemption of memory and one of KV tokens at a time is under way on a device. Others wait for their turn, the most
important first.
"""

from __future__ import annotations

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import callers, effects, kv_lending, preempting
from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.kv import KvPlan
from arbiter_sidecar.ledger.plans import MAX_ASKED, Asked, Plan
from arbiter_sidecar.policy import preemption
from arbiter_sidecar.requests import PreemptionRequest
from arbiter_sidecar.types import Priority, Ticket

Wish = preempting.Wish | kv_lending.Wish


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
    wish = _wish_of(books, request, now)
    device, tokens = wish.device, isinstance(wish, kv_lending.Wish)
    known = _known(books, wish, request, now)
    if known is not None:
        _join(books, known, ticket)
        return device
    if len(books.asks.waiting) >= MAX_ASKED:
        raise errors.QueueFull(f"{MAX_ASKED} preemptions wait for their turn already")
    asked = Asked(
        number=ticket,
        request=request,
        device_id=device.device_id,
        priority=wish.priority,
        deadline=now + books.config.preemption.turn_s,
    )
    asked.tickets.append(ticket)
    free = _free(books, device, wish.priority, now, tokens=tokens)
    if free and books.asks.first(device.device_id, tokens=tokens) is None:
        _start(books, asked, wish, now)
    else:
        books.asks.waiting[asked.number] = asked
        books.later(asked.deadline, "unask", asked)
    books.asks.remember(asked)
    return device


def dry(books: Books, request: PreemptionRequest, now: float) -> preemption.Plan:
    """Who would lose what; changes nothing. Raises what ``ask`` raises about the request itself."""
    return _draft(books, _wish_of(books, request, now), now)


def _wish_of(books: Books, request: PreemptionRequest, now: float) -> Wish:
    if request.need_tokens:
        return kv_lending.wish_of(books, request, now)
    requester, device, priority = callers.requester_of(books, request, now)
    return preempting.Wish(
        device=device,
        requester=requester,
        priority=priority,
        need_bytes=request.need_bytes,
        grace_s=books.config.preemption.grace_s if request.grace_s is None else request.grace_s,
        partial=request.allow_partial,
    )


def _draft(books: Books, wish: Wish, now: float) -> preemption.Plan:
    if isinstance(wish, kv_lending.Wish):
        return kv_lending.draft(books, wish, now)
    return preempting.draft(books, wish, now)


def _under_way(device: DeviceBook, *, tokens: bool) -> Plan | KvPlan | None:
    return device.kv.plan if tokens else device.plan


def _known(books: Books, wish: Wish, request: PreemptionRequest, now: float) -> Asked | None:
    """An earlier call that this one repeats: by its name, or because its lease asks already."""
    known = books.asks.named(request, now)
    if known is not None:
        if known.request != request:
            raise errors.IdempotencyMismatch(request_id=request.request_id)
        return known
    plan = _under_way(wish.device, tokens=isinstance(wish, kv_lending.Wish))
    if plan is None or wish.requester is None or plan.requester is not wish.requester or request.request_id:
        return None
    return plan.asked


def _join(books: Books, asked: Asked, ticket: Ticket) -> None:
    if asked.closed_at is None:
        asked.tickets.append(ticket)
    else:
        books.pending.append(effects.PlanClosed(ticket, asked.plan, asked.error))


def _free(books: Books, device: DeviceBook, priority: Priority, now: float, *, tokens: bool) -> bool:
    """Whether one may begin: none is under way, and for memory nobody starts up or needs one more urgently."""
    if _under_way(device, tokens=tokens) is not None:
        return False
    if tokens:
        return True
    return device.fenced_by(now) is None and not any(
        waiter.device_id == device.device_id and waiter.request.may_preempt and waiter.request.priority > priority
        for waiter in books.queue
    )


def _start(books: Books, asked: Asked, wish: Wish, now: float) -> None:
    chosen = _draft(books, wish, now)
    if chosen.refused:
        raise _refusal(wish, chosen)
    if isinstance(wish, kv_lending.Wish):
        asked.plan = kv_lending.begin(books, wish, chosen, asked, now)
    else:
        plan = asked.plan = preempting.begin(books, wish, chosen, now)
        plan.asked = asked


def _refusal(wish: Wish, chosen: preemption.Plan) -> errors.NoDonor:
    """Why nobody is asked."""
    told = ", ".join(f"{lease_id}: {reason.value}" for lease_id, reason in chosen.reasons.items())
    what = "tokens" if isinstance(wish, kv_lending.Wish) else "bytes"
    return errors.NoDonor(
        f"{chosen.need} {what} are needed, {chosen.available} could be taken at most ({told or 'no lease'})",
        needed=chosen.need,
        available=chosen.available,
        device_id=wish.device.device_id,
    )


def next_turn(books: Books, device: DeviceBook, now: float) -> None:
    """Begins the preemptions whose turn it is on a device, if there are some that may."""
    for tokens in (False, True):
        while (asked := books.asks.first(device.device_id, tokens=tokens)) is not None:
            if not _free(books, device, asked.priority, now, tokens=tokens):
                break
            del books.asks.waiting[asked.number]
            try:
                _start(books, asked, _wish_of(books, asked.request, now), now)
            except errors.ArbiterError as error:
                callers.answer(books, asked, error, now)


def leave(books: Books, ticket: Ticket, now: float) -> DeviceBook | None:
    """A caller has gone. When nobody is left that waits for a preemption its donors are let off.

    Returns:
        The device on which something has changed.
    """
    for device in books.devices.values():
        for plan in (device.plan, device.kv.plan):
            if plan is not None and plan.asked is not None and ticket in plan.asked.tickets:
                plan.asked.tickets.remove(ticket)
                if plan.asked.tickets:
                    return None
                if isinstance(plan, KvPlan):
                    kv_lending.close(books, device, plan, now, withdrawn=errors.Cancelled())
                else:
                    preempting.close(books, plan, now, withdrawn=errors.Cancelled())
                return device
    for asked in books.asks.waiting.values():
        if ticket in asked.tickets:
            asked.tickets.remove(ticket)
            if not asked.tickets:
                del books.asks.waiting[asked.number]
                callers.answer(books, asked, errors.Cancelled(), now)
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
        callers.answer(books, asked, error, now)


def shut(books: Books, now: float) -> None:
    """The server drains: nobody's turn comes any more."""
    waiting, books.asks.waiting = books.asks.waiting, {}
    for asked in waiting.values():
        callers.answer(books, asked, errors.ShuttingDown(), now)
