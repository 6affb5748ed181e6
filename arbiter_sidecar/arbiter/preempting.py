"""Takes memory from the less important for the more important: notice, grace, confirmation, and only then revocation.

A plan is opened with notices to its donors, follows what the books of the device confirm, becomes pressing when a donor
is silent, and at the deadline revokes who has neither given nor answered. What is missing then is asked of others once.
The requester gets nothing but confirmed bytes, and nobody else gets those.
"""

from __future__ import annotations

from dataclasses import dataclass

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import callers, effects
from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.plans import Donation, Plan
from arbiter_sidecar.ledger.waiting import Waiter
from arbiter_sidecar.policy import preemption, publication
from arbiter_sidecar.types import (
    DirectiveReason,
    DonationOutcome,
    EndReason,
    EventKind,
    LeaseId,
    Priority,
    ReclaimLevel,
)

#: A donor that has not answered after this part of its grace, or this many seconds, is told that it is pressing.
ANSWER_SHARE = 0.25
ANSWER_S = 1.0
#: One step of published quality.
STEP = 1 / publication.GRID
#: A plan ends after so many graces and the drain grace: two rounds of notices and the time until memory is gone.
ROUNDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What somebody asks to be taken from others.

    Attributes:
        device: Where.
        requester: The lease that asks; ``None`` for a waiting request or a person.
        priority: With which it asks.
        need_bytes: How much, above 0.
        partial: Less is welcome.
        machine: Nobody asks: the device is short by itself.
        waiter: The waiting request it is for; ``None`` for others.
        whole: Only whole leases help: everybody is at the minimum already.
        grace_s: Time from notice to deadline.
    """

    device: DeviceBook
    requester: Lease | None
    priority: Priority
    need_bytes: int
    grace_s: float
    partial: bool = False
    machine: bool = False
    waiter: Waiter | None = None
    whole: bool = False


def draft(books: Books, wish: Wish, now: float, *, fell_short: frozenset[LeaseId] = frozenset()) -> preemption.Plan:
    """Who would have to give; changes nothing."""
    requester = None
    if not wish.machine:
        own = wish.requester.lease_id if wish.requester is not None else None
        requester = preemption.Requester(priority=wish.priority, lease_id=own)
    return preemption.plan(
        [_candidate(lease, wish) for lease in wish.device.live.values() if not lease.leaving],
        wish.need_bytes,
        requester=requester,
        now=now,
        rules=books.config.preemption.rules,
        allow_partial=wish.partial,
        fell_short=fell_short,
    )


def _candidate(lease: Lease, wish: Wish) -> preemption.Candidate:
    floor = lease.elastic.floor_bytes
    return preemption.Candidate(
        lease_id=lease.lease_id,
        priority=lease.request.priority,
        granted_at=lease.created_at,
        shrinkable=0 if wish.whole else max(0, lease.limit_bytes - floor),
        whole=floor if wish.whole else lease.accounted_bytes,
        preemptible=lease.request.preemptible,
        healthy=not lease.suspect and (lease.overuse is None or lease.overuse.order is None),
        donated_at=tuple(lease.donated_at),
        spared_until=lease.spared_until,
        wake_cost_s=lease.wake_cost_s,
    )


def begin(books: Books, wish: Wish, chosen: preemption.Plan, now: float) -> Plan:
    """Opens a plan: every donor gets its notice."""
    rules = books.config.preemption
    device = wish.device
    books.plans_begun += 1
    plan = Plan(
        plan_id=f"plan-{books.epoch}-{books.plans_begun}",
        device_id=device.device_id,
        requester=wish.requester,
        waiter=wish.waiter,
        priority=wish.priority,
        need_bytes=wish.need_bytes,
        partial=wish.partial,
        machine=wish.machine,
        grace_s=wish.grace_s,
        deadline=now + ROUNDS * wish.grace_s + rules.settle_s,
    )
    device.plan = plan
    books.event(
        EventKind.PREEMPTION_PLANNED,
        device_id=device.device_id,
        lease_id=wish.requester.lease_id if wish.requester is not None else "",
        request_id=wish.waiter.name if wish.waiter is not None else "",
        request=wish.waiter.request if wish.waiter is not None else None,
        plan_id=plan.plan_id,
        need_bytes=wish.need_bytes,
        priority="machine" if wish.machine else wish.priority.name,
        donors=",".join(donation.lease_id for donation in chosen.donations),
    )
    _ask(books, plan, chosen, now)
    return plan


def _ask(books: Books, plan: Plan, chosen: preemption.Plan, now: float) -> None:
    """Sends a notice to every donor of a round."""
    device = books.devices[plan.device_id]
    plan.rejected = {
        lease_id: reason.value
        for lease_id, reason in chosen.reasons.items()
        if reason not in (preemption.Reason.SHRINKS, preemption.Reason.REVOKED)
    }
    for each in chosen.donations:
        lease = device.lease(each.lease_id)
        # One that is asked for more keeps its donation, which must not change while it counts.
        device.demand(lease, None)
        donation = _order(plan, lease, each, now)
        device.demand(lease, donation)
        if not each.whole:
            books.settle(lease, now)
            squeeze(device, lease, each.amount)
            donation.limit_bytes, lease.told_at = lease.limit_bytes, now
        lease.donated_at.append(now)
        books.accounts.of(lease.request.namespace, lease.request.holder).reclaims += 1
        books.announce(lease, DirectiveReason.PREEMPTION)
        books.happened(
            EventKind.RECLAIM_REQUESTED,
            lease,
            plan_id=plan.plan_id,
            reclaim_id=donation.reclaim_id,
            memory_bytes=each.amount,
            whole=each.whole,
            grace_s=plan.grace_s,
        )
    _remind(books, plan, now)


def delay(books: Books, seconds: float) -> None:
    """Gives every open plan so much more time, because the arbiter itself had been away."""
    for device in books.devices.values():
        if device.plan is not None:
            device.plan.delay(seconds)
            _remind(books, device.plan, max(each.asked_at for each in device.plan.donations.values()))


def _remind(books: Books, plan: Plan, asked_at: float) -> None:
    """Puts the deadlines of a round that began at ``asked_at``, and that of the plan, on the agenda."""
    books.later(asked_at + _pressing_s(plan), "press", plan)
    books.later(asked_at + plan.grace_s, "collect", plan)
    books.later(plan.deadline, "close", plan)


def _order(plan: Plan, lease: Lease, chosen: preemption.Donation, now: float) -> Donation:
    plan.orders += 1
    reclaim_id = f"{plan.plan_id}-{plan.orders}"
    amount, whole, grace_s = chosen.amount, chosen.whole, plan.grace_s
    donation = plan.donations.get(lease.lease_id)
    if donation is None:
        donation = plan.donations[lease.lease_id] = Donation(
            reclaim_id=reclaim_id, lease=lease, planned_bytes=amount, whole=whole, now=now, grace_s=grace_s
        )
    else:
        donation.extend(reclaim_id=reclaim_id, more_bytes=amount, whole=whole, now=now, grace_s=grace_s)
    return donation


def squeeze(device: DeviceBook, lease: Lease, amount: int) -> None:
    """Lowers what a donor is told by exactly ``amount``, and its quality to what that allows."""
    limit = lease.limit_bytes - amount
    device.squeeze(lease, quality=min(quality_within(lease, limit), lease.quality), limit_bytes=limit)


def quality_within(lease: Lease, limit: int) -> float:
    """The best quality on the grid whose bytes are within a limit, which is not below the lease's minimum."""
    shape = lease.elastic
    exact = 1.0 - (shape.full_bytes - limit) / shape.slope if shape.slope > 0.0 else shape.min_quality
    allowed = publication.quantise(exact, minimum=shape.min_quality, maximum=shape.max_quality)
    if shape.bytes_at(allowed) > limit:
        # The noise that quantising tolerates is worth some bytes of a large lease.
        allowed = publication.quantise(allowed - STEP, minimum=shape.min_quality, maximum=shape.max_quality)
    return allowed


def follow(books: Books, device: DeviceBook, now: float) -> None:
    """Takes in what the books of a device confirm by now; ends its plan when there is nothing left to wait for."""
    plan = device.plan
    if plan is None:
        return
    for donation in plan.donations.values():
        gained = donation.observe()
        if plan.requester is not None:
            device.earmarked_bytes += gained
        if gained and donation.short_bytes == 0 and donation.outcome is DonationOutcome.OPEN:
            _confirm(books, donation, now)
    if _requester_gone(books, plan, now):
        close(books, plan, now, withdrawn=errors.LeaseNotFound("the lease that asked has ended"))
    elif _needless(books, device, plan, now):
        close(books, plan, now, withdrawn=errors.Cancelled())
    elif _settled(device, plan, now):
        close(books, plan, now)


def _confirm(books: Books, donation: Donation, now: float) -> None:
    donation.outcome = DonationOutcome.CONFIRMED
    request = donation.lease.request
    books.accounts.of(request.namespace, request.holder).reclaim_seconds += now - donation.asked_at


def _requester_gone(books: Books, plan: Plan, now: float) -> bool:
    if plan.requester is not None:
        return not plan.requester.alive or plan.requester.deadline <= now
    return plan.waiter is not None and plan.waiter not in books.queue


def _needless(books: Books, device: DeviceBook, plan: Plan, now: float) -> bool:
    """Whether those who were asked to go, and are still there, may stay: room came from elsewhere."""
    if not plan.whole or not any(donation.lease.leaving for donation in plan.donations.values()):
        return False
    request = plan.waiter.request if plan.waiter is not None else None
    newcomer = books.shape(request) if request is not None else None
    return device.excess_bytes(newcomer, now, device.own(request)) == 0


def _settled(device: DeviceBook, plan: Plan, now: float) -> bool:
    """Whether there is nothing left to wait for: all is there, or no more is to come.

    One for a waiting request goes on until that is granted, so that nobody comes before it.
    """
    if plan.waiter is not None:
        return False
    share = _share(plan)
    if share < plan.need_bytes and not plan.spent:
        return False
    welcome = share == plan.need_bytes or plan.partial
    return not welcome or _credit_bytes(device, plan, now) == share


def _share(plan: Plan) -> int:
    return min(plan.confirmed_bytes, plan.need_bytes)


def _credit_bytes(device: DeviceBook, plan: Plan, now: float) -> int:
    """What of the confirmed is still there: strangers may have taken it, and a donor may have grown again."""
    if plan.requester is None:
        return _share(plan)
    kept = device.earmarked_bytes
    share = min(_share(plan), max(0, device.available_bytes + kept))
    return share if device.fits(share, now, kept_bytes=kept) else 0


def _pressing_s(plan: Plan) -> float:
    return min(ANSWER_S, plan.grace_s * ANSWER_SHARE)


def press(books: Books, plan: Plan, now: float) -> None:
    """Tells the donors that have not answered that it is pressing."""
    for donation in plan.donations.values():
        lease = donation.lease
        due = donation.level is ReclaimLevel.SOFT and donation.asked_at + _pressing_s(plan) <= now
        if lease.reclaim is donation and due and not donation.acknowledged:
            donation.level = ReclaimLevel.HARD
            books.announce(lease, DirectiveReason.PREEMPTION)
            books.happened(EventKind.RECLAIM_ESCALATED, lease, plan_id=plan.plan_id, reclaim_id=donation.reclaim_id)


def collect(books: Books, plan: Plan, now: float) -> None:
    """The deadline of a round: revokes who gave nothing and said nothing, and asks others for what is missing, once."""
    device = books.devices[plan.device_id]
    for donation in list(plan.donations.values()):
        if donation.outcome is DonationOutcome.OPEN and donation.lease.alive and donation.deadline <= now:
            if _needless(books, device, plan, now):
                # Enough have gone, the others are let off at once.
                return
            _call_in(books, plan, donation, now)
    given = plan.donations.values()
    # What the ended still hold counts when it is measured gone, and is not asked of others.
    missing = plan.short_bytes - sum(donation.short_bytes for donation in given if not donation.lease.alive)
    if missing <= 0 or plan.replanned or any(donation.deadline > now for donation in given):
        return
    plan.replanned = True
    wish = Wish(
        device=device,
        requester=plan.requester,
        waiter=plan.waiter,
        priority=plan.priority,
        need_bytes=missing,
        grace_s=plan.grace_s,
        partial=plan.partial,
        machine=plan.machine,
        whole=plan.whole,
    )
    again = draft(books, wish, now, fell_short=frozenset(each.lease.lease_id for each in given if each.short_bytes))
    if not again.refused:
        _ask(books, plan, again, now)


def _call_in(books: Books, plan: Plan, donation: Donation, now: float) -> None:
    lease = donation.lease
    if donation.whole or not donation.acknowledged:
        donation.outcome = DonationOutcome.REVOKED
        books.accounts.of(lease.request.namespace, lease.request.holder).floor_breaches += 1
        books.end(lease, EndReason.PREEMPTED, now)
    else:
        donation.outcome = DonationOutcome.PARTIAL
        _let_off(books, donation, now)


def _let_off(books: Books, donation: Donation, now: float) -> None:
    """The donor need not give any more."""
    lease = donation.lease
    if lease.alive and lease.reclaim is donation:
        books.device_of(lease).demand(lease, None)
        lease.spared_until = now + books.config.preemption.cooldown_s
        books.announce(lease, DirectiveReason.PREEMPTION)


def close(books: Books, plan: Plan, now: float, *, withdrawn: errors.ArbiterError | None = None) -> None:
    """Ends a plan with what there is: the requester gets what was confirmed, the donors are let off.

    A plan that is ``withdrawn`` gives the requester nothing; the reason is what its callers hear.
    """
    device = books.devices[plan.device_id]
    confirmed = plan.confirmed_bytes
    got = _credit_bytes(device, plan, now) if withdrawn is None else 0
    enough = got == plan.need_bytes or (plan.partial and got > 0)
    device.plan, device.earmarked_bytes = None, 0
    if enough and plan.requester is not None:
        _credit(books, plan.requester, got)
    for donation in plan.donations.values():
        _finish(books, donation, now)
        donation.lease.spared_until = now + books.config.preemption.cooldown_s
    error = withdrawn
    if enough:
        books.stats.preemptions += 1
    elif error is None:
        error = errors.NoDonor(
            f"{got} of {plan.need_bytes} bytes came free in time", confirmed=got, needed=plan.need_bytes
        )
    if plan.asked is not None:
        callers.answer(books, plan.asked, error, now)
    books.event(
        EventKind.PREEMPTION_SETTLED,
        device_id=plan.device_id,
        lease_id=plan.requester.lease_id if plan.requester is not None else "",
        plan_id=plan.plan_id,
        need_bytes=plan.need_bytes,
        confirmed_bytes=confirmed,
        credited_bytes=got if enough and plan.requester is not None else 0,
        memory_limit_bytes=plan.requester.limit_bytes if plan.requester is not None else 0,
        outcome="withdrawn" if withdrawn is not None else "enough" if enough else "too_little",
    )


def _finish(books: Books, donation: Donation, now: float) -> None:
    """The plan is over for a donor: whoever has not given all that was asked need not any more."""
    lease = donation.lease
    if donation.outcome is DonationOutcome.OPEN and lease.alive:
        donation.outcome = DonationOutcome.CANCELLED
        books.pending.append(effects.ReclaimCancelled(lease, donation.reclaim_id))
    elif donation.outcome is DonationOutcome.OPEN:
        # It went by itself, and its memory is not all gone yet.
        donation.outcome = DonationOutcome.PARTIAL
    _let_off(books, donation, now)


def _credit(books: Books, requester: Lease, amount: int) -> None:
    """The requester may use so much more, at every quality."""
    requester.credit_bytes += amount
    device = books.device_of(requester)
    device.grow(requester, books.shape_of(requester), amount)
    books.announce(requester, DirectiveReason.PREEMPTION)


def for_waiter(books: Books, device: DeviceBook, waiter: Waiter, short_bytes: int, now: float) -> bool:
    """Preempts for a waiting request that even everybody's minimum leaves no room for; True when a plan is under way.

    Bytes of ended leases come back by themselves and are not asked of anybody else.
    """
    if device.plan is not None:
        return device.plan.waiter is waiter
    missing = short_bytes - device.returning_bytes(now, device.own(waiter.request))
    if not waiter.request.may_preempt or waiter.request.wait_s <= 0.0 or missing <= 0:
        return False
    wish = Wish(
        device=device,
        requester=None,
        waiter=waiter,
        priority=waiter.request.priority,
        need_bytes=missing,
        grace_s=books.config.preemption.grace_s,
        whole=True,
    )
    chosen = draft(books, wish, now)
    if chosen.refused:
        return False
    begin(books, wish, chosen, now)
    return True


def settle_for(books: Books, waiter: Waiter, now: float) -> None:
    """A waiting request has its lease: who was asked to go for it and is still there may stay."""
    for device in books.devices.values():
        plan = device.plan
        if plan is not None and plan.waiter is waiter:
            close(books, plan, now, withdrawn=errors.Cancelled() if plan.short_bytes else None)


def for_machine(books: Books, device: DeviceBook, deficit_bytes: int, now: float) -> None:
    """Frees what the machine itself is short of: strangers grew, and everybody's minimum does not fit any more.

    It comes before anything that somebody asked for: what was freed for that is what the machine is short of.
    """
    wish = machine_wish(books, device, deficit_bytes, now)
    if wish is None:
        return
    chosen = draft(books, wish, now)
    if chosen.refused:
        return
    if device.plan is not None:
        short = errors.NoDonor("the device itself fell short of memory meanwhile", device_id=device.device_id)
        close(books, device.plan, now, withdrawn=short)
    begin(books, wish, chosen, now)


def machine_wish(books: Books, device: DeviceBook, deficit_bytes: int, now: float) -> Wish | None:
    """What the machine itself would ask for; ``None`` when it is not short, asks already, or cannot tell."""
    missing = deficit_bytes - device.returning_bytes(now)
    asks_already = device.plan is not None and device.plan.machine
    if asks_already or missing <= 0 or device.frozen(now):
        return None
    return Wish(
        device=device,
        requester=None,
        priority=Priority.CRITICAL,
        need_bytes=missing,
        grace_s=books.config.preemption.grace_s,
        partial=True,
        machine=True,
        whole=True,
    )
