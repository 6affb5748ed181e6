"""Lends KV tokens of the less important to the more important: order, grace, confirmation by reports, and the way back.

A donor's budget falls at once; the borrower's rises only by what the donor was seen to have freed. Nobody ends for it.
A loan is over when its borrower has no more work, or either of them is gone.
"""

from __future__ import annotations

from dataclasses import dataclass

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import callers, kv
from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.kv import KvDonation, KvPlan, Loan
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.plans import Asked
from arbiter_sidecar.policy import preemption
from arbiter_sidecar.requests import PreemptionRequest
from arbiter_sidecar.types import DonationOutcome, EventKind, LeaseId, Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What an engine asks to be lent.

    Attributes:
        device: Where.
        requester: The engine.
        priority: With which it asks.
        need: Tokens, above 0.
        partial: Less is welcome.
        grace_s: Time from an order to its deadline.
    """

    device: DeviceBook
    requester: Lease
    priority: Priority
    need: int
    partial: bool
    grace_s: float


def wish_of(books: Books, request: PreemptionRequest, now: float) -> Wish:
    """What a caller's request comes to.

    Raises:
        LeaseNotFound: The lease is unknown or has ended.
        InvalidRequest: No lease is named, it is no KV engine or elsewhere, or the priority is above the lease's.
    """
    if not request.lease_id:
        raise errors.InvalidRequest([("lease_id", "is required with kv_tokens: tokens are lent to an engine")])
    requester, device, priority = callers.requester_of(books, request, now)
    assert requester is not None
    if requester.kv is None:
        raise errors.InvalidRequest([("kv_tokens", "the lease is no KV engine: it was asked for without kv")])
    grace_s = books.config.preemption.grace_s if request.grace_s is None else request.grace_s
    return Wish(
        device=device,
        requester=requester,
        priority=priority,
        need=request.need_tokens,
        partial=request.allow_partial,
        grace_s=grace_s,
    )


def draft(books: Books, wish: Wish, now: float, *, fell_short: frozenset[LeaseId] = frozenset()) -> preemption.Plan:
    """Who would have to lend; changes nothing."""
    book = wish.device.kv
    return preemption.plan(
        [_candidate(lease, book.unit) for lease in book.engines.values()],
        -(-wish.need // book.unit) * book.unit,
        requester=preemption.Requester(priority=wish.priority, lease_id=wish.requester.lease_id),
        now=now,
        rules=preemption.KV_RULES,
        allow_partial=wish.partial,
        fell_short=fell_short,
    )


def _candidate(lease: Lease, unit: int) -> preemption.Candidate:
    state = lease.kv
    assert state is not None
    running = state.usage is not None and state.usage.resident_tokens > 0
    return preemption.Candidate(
        lease_id=lease.lease_id,
        priority=lease.request.priority,
        # With nothing running its own importance decides.
        running_priority=state.usage.lowest_running_priority if running and state.usage else lease.request.priority,
        granted_at=lease.created_at,
        shrinkable=state.lendable // unit * unit,
        preemptible=lease.request.preemptible,
        healthy=not lease.suspect,
        donated_at=tuple(state.donated_at),
        spared_until=state.spared_until,
    )


def begin(books: Books, wish: Wish, chosen: preemption.Plan, asked: Asked, now: float) -> KvPlan:
    """Opens a plan: every donor is told its lower budget."""
    book = wish.device.kv
    books.plans_begun += 1
    plan = book.plan = KvPlan(
        plan_id=f"plan-{books.epoch}-{books.plans_begun}",
        device_id=wish.device.device_id,
        requester=wish.requester,
        asked=asked,
        priority=wish.priority,
        need=chosen.need,
        partial=wish.partial,
        grace_s=wish.grace_s,
    )
    books.event(
        EventKind.PREEMPTION_PLANNED,
        device_id=plan.device_id,
        lease_id=wish.requester.lease_id,
        plan_id=plan.plan_id,
        need_tokens=plan.need,
        priority=wish.priority.name,
        donors=",".join(donation.lease_id for donation in chosen.donations),
    )
    _ask(books, wish.device, plan, chosen, now)
    return plan


def _ask(books: Books, device: DeviceBook, plan: KvPlan, chosen: preemption.Plan, now: float) -> None:
    book = device.kv
    engines = {lease.lease_id: lease for lease in book.engines.values()}
    taken = (preemption.Reason.SHRINKS, preemption.Reason.REVOKED)
    plan.rejected = {lease_id: why.value for lease_id, why in chosen.reasons.items() if why not in taken}
    deadline = now + plan.grace_s
    for each in chosen.donations:
        lease = engines[each.lease_id]
        loan = Loan(donor=lease, borrower=plan.requester, taken=each.amount)
        book.loans.append(loan)
        state = book.of(lease)
        plan.donations[each.lease_id] = KvDonation(
            loan=loan, planned=each.amount, limit=state.budget - each.amount, deadline=deadline
        )
        state.donated_at.append(now)
    book.dirty = True
    kv.publish(books, device, now)
    for each in chosen.donations:
        lease = engines[each.lease_id]
        state = book.of(lease)
        if state.excess > 0 and state.order is None:
            kv.order(books, lease, state, now, plan.grace_s)
    books.later(deadline, "kv", plan)


def follow(books: Books, device: DeviceBook, now: float) -> None:
    """Takes in what reports confirm by now; ends the plan when there is nothing left to wait for."""
    plan, book = device.kv.plan, device.kv
    if plan is None:
        return
    for donation in plan.donations.values():
        if donation.outcome is DonationOutcome.OPEN:
            _observe(books, device, donation)
    gone = not plan.requester.alive or plan.requester.deadline <= now
    if gone:
        close(books, device, plan, now, withdrawn=errors.LeaseNotFound("the lease that asked has ended"))
    elif plan.confirmed >= plan.need or (plan.settled and plan.replanned):
        close(books, device, plan, now)
    elif plan.settled:
        _ask_again(books, device, plan, now)
        if book.plan is plan and plan.settled:
            close(books, device, plan, now)


def _observe(books: Books, device: DeviceBook, donation: KvDonation) -> None:
    """What a donor is charged above what was left to it, it has not freed yet."""
    lease, loan, book = donation.lease, donation.loan, device.kv
    if not lease.alive:
        donation.outcome = DonationOutcome.PARTIAL
        return
    state = book.of(lease)
    freed = min(donation.planned, max(loan.given, donation.planned - (state.charged - donation.limit)))
    if freed > loan.given:
        loan.given = freed
        book.dirty = True
    if loan.given == donation.planned:
        donation.outcome = DonationOutcome.CONFIRMED


def collect(books: Books, device: DeviceBook, plan: KvPlan, now: float) -> None:
    """The deadline of a round: who has freed a part keeps the rest, and what is missing is asked of others, once."""
    for donation in plan.donations.values():
        if donation.outcome is DonationOutcome.OPEN and donation.deadline <= now:
            donation.outcome = DonationOutcome.PARTIAL
            _let_off(books, device, donation, now)
    follow(books, device, now)


def _ask_again(books: Books, device: DeviceBook, plan: KvPlan, now: float) -> None:
    plan.replanned = True
    wish = Wish(
        device=device,
        requester=plan.requester,
        priority=plan.priority,
        need=plan.need - plan.confirmed,
        partial=plan.partial,
        grace_s=plan.grace_s,
    )
    again = draft(books, wish, now, fell_short=frozenset(each.lease.lease_id for each in plan.donations.values()))
    if not again.refused:
        _ask(books, device, plan, again, now)


def _let_off(books: Books, device: DeviceBook, donation: KvDonation, now: float) -> None:
    """A donor lends no more than it was seen to have freed."""
    loan, book = donation.loan, device.kv
    if loan.taken > loan.given:
        loan.taken = loan.given
        book.dirty = True
    if not loan.taken and loan in book.loans:
        book.loans.remove(loan)
    if donation.lease.alive:
        book.of(donation.lease).spared_until = now + books.config.preemption.cooldown_s


def close(
    books: Books, device: DeviceBook, plan: KvPlan, now: float, *, withdrawn: errors.ArbiterError | None = None
) -> None:
    """Ends a plan with what there is. Too little, where that is not welcome, goes back to the donors."""
    book, confirmed = device.kv, plan.confirmed
    enough = withdrawn is None and (confirmed >= plan.need or (plan.partial and confirmed > 0))
    # The plan may have been all that held the loans of a requester without work.
    book.plan, book.dirty = None, True
    for donation in plan.donations.values():
        if donation.outcome is DonationOutcome.OPEN:
            donation.outcome = DonationOutcome.CANCELLED
        if not enough:
            donation.loan.given = 0
        _let_off(books, device, donation, now)
    error = withdrawn
    if enough:
        books.stats.preemptions += 1
    elif error is None:
        error = errors.NoDonor(
            f"{confirmed} of {plan.need} tokens were freed in time", confirmed=confirmed, needed=plan.need
        )
    callers.answer(books, plan.asked, error, now)
    books.event(
        EventKind.PREEMPTION_SETTLED,
        device_id=plan.device_id,
        lease_id=plan.requester.lease_id,
        plan_id=plan.plan_id,
        need_tokens=plan.need,
        confirmed_tokens=confirmed,
        outcome="withdrawn" if withdrawn is not None else "enough" if enough else "too_little",
    )


def delay(books: Books, seconds: float) -> None:
    """Gives plans, and those who have to free tokens, so much more time, because the arbiter itself had been away."""
    for device in books.devices.values():
        for lease in device.kv.engines.values():
            kv.delay(books, lease, seconds)
        plan = device.kv.plan
        if plan is not None:
            plan.delay(seconds)
            books.later(max(each.deadline for each in plan.donations.values()), "kv", plan)
