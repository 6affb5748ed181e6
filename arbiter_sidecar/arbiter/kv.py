"""KV token budgets: shared anew when something has changed, lower ones told at once, higher ones as tokens are free.

An engine that keeps more than its budget may finish what it has begun; when that takes too long it is ordered to free.
"""

from __future__ import annotations

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import effects, preempting
from arbiter_sidecar.arbiter.books import Books
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.kv import KvBook, KvOrder, KvState, Reservation, WaitingReservation
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.policy import kv_budget
from arbiter_sidecar.requests import KvUsage, ReservationRequest
from arbiter_sidecar.types import DirectiveReason, DonationOutcome, EventKind, ReclaimLevel, Ticket


def hear(books: Books, lease: Lease, usage: KvUsage) -> bool:
    """Takes in what an engine reports; True when budgets may have to change, or one that waits may fit now."""
    state = lease.kv
    if state is None:
        return False
    was_active = state.active
    state.usage = usage
    moved = books.device_of(lease).kv.note(lease, was_active=was_active)
    return moved or state.wanted > 0


def confirm(books: Books, lease: Lease, now: float) -> bool:
    """After a heartbeat: what an engine was told to free, and does not keep any more, is free; True when some is."""
    book = books.device_of(lease).kv
    state = book.of(lease)
    kept = max(state.budget, state.resident)
    freed = lease.applied_revision >= state.lowered_at and kept < state.charged
    if freed:
        book.charge(lease, kept)
        book.dirty = True
    settled = watch(books, lease, state, now)
    return freed or settled


def watch(books: Books, lease: Lease, state: KvState, now: float) -> bool:
    """Notes whether an engine keeps more than its budget; True when an order to free has been met."""
    if state.excess == 0:
        return _relieve(books, lease, state)
    if state.over_since is None:
        state.over_since = now
        books.later(now + books.config.kv.drain_s, "kv", lease)
    return False


def _relieve(books: Books, lease: Lease, state: KvState) -> bool:
    """An engine keeps no more than its budget; True when it had been ordered to free something."""
    state.over_since = None
    if state.order is None:
        return False
    state.order = None
    books.announce(lease, DirectiveReason.KV_BUDGET)
    return True


def publish(books: Books, device: DeviceBook, now: float) -> None:
    """Brings the budgets of a device up to date: falls first, then rises as far as tokens are free."""
    book = device.kv
    if book.dirty:
        book.dirty = False
        if books.config.observe_only:
            _advise(books, book)
        else:
            _share(books, book, now)
    _serve_waiting(books, book, now)


def _share(books: Books, book: KvBook, now: float) -> None:
    shares = kv_budget.allocate(
        book.inputs(), book.total, engine_cap_permille=books.config.kv.engine_cap_permille, block_tokens=book.unit
    )
    if book.loans:
        targets = dict(zip(book.engines.values(), shares, strict=True))
        _move_loans(book, targets)
        shares = list(targets.values())
    rising: dict[Lease, int] = {}
    falling: list[tuple[Lease, int]] = []
    for lease, target in zip(book.engines.values(), shares, strict=True):
        budget = book.of(lease).budget
        if target > budget:
            rising[lease] = target
        elif target < budget:
            falling.append((lease, target))
    for lease, target in falling:
        state = book.of(lease)
        _tell(books, lease, state, target)
        state.lowered_at = lease.revision
        watch(books, lease, state, now)
    if rising:
        _raise(books, book, rising)


def _advise(books: Books, book: KvBook) -> None:
    """Observe-only: every engine has the most it could ever have, and the books say what it would be told."""
    shares = kv_budget.allocate(
        book.inputs(), book.total, engine_cap_permille=books.config.kv.engine_cap_permille, block_tokens=book.unit
    )
    for lease, share in zip(book.engines.values(), shares, strict=True):
        state = book.of(lease)
        most = book.total if state.share.max_tokens is None else min(book.total, state.share.max_tokens)
        if state.budget != most:
            book.charge(lease, most)
            _tell(books, lease, state, most)
        if state.advised != share:
            state.advised = share
            books.happened(EventKind.KV_BUDGET_ADVISED, lease, tokens=share, resident=state.resident)


def _move_loans(book: KvBook, targets: dict[Lease, int]) -> None:
    """What each engine should be told: its share, less what it lends, more what it has borrowed.

    A loan whose borrower needs nothing any more is over. A donor whose own share has become smaller lends no more than
    leaves it at its floor.
    """
    for loan in list(book.loans):
        donor, borrower = loan.donor, loan.borrower
        floor = min(book.of(donor).share.min_tokens, targets[donor])
        asks = book.plan is not None and book.plan.requester is borrower
        if not asks and (borrower.suspect or not book.of(borrower).active):
            book.loans.remove(loan)
            continue
        taken = min(loan.taken, targets[donor] - floor)
        targets[donor] -= taken
        if not borrower.suspect:
            targets[borrower] += min(loan.given, taken)
    for donation in book.plan.donations.values() if book.plan is not None else ():
        if donation.outcome is DonationOutcome.OPEN and donation.lease.alive:
            targets[donation.lease] = min(targets[donation.lease], donation.limit)


def _raise(books: Books, book: KvBook, rising: dict[Lease, int]) -> None:
    """Raises budgets; when not enough tokens are free for all, borrowers have what was lent to them first."""
    more = {lease: max(0, target - book.of(lease).charged) for lease, target in rising.items()}
    free = book.total - book.charged
    if sum(more.values()) > free:
        lent = _split(book, {lease: min(more[lease], book.borrowed(lease)) for lease in more}, free)
        rest = {lease: more[lease] - amount for lease, amount in lent.items()}
        others = _split(book, rest, free - sum(lent.values()))
        more = {lease: lent[lease] + others[lease] for lease in more}
    for lease, target in rising.items():
        state = book.of(lease)
        budget = min(target, max(state.budget, state.charged) + more[lease])
        if budget > state.budget:
            book.charge(lease, max(state.charged, budget))
            _tell(books, lease, state, budget)


def _split(book: KvBook, wanted: dict[Lease, int], free: int) -> dict[Lease, int]:
    """What each gets of the free tokens: no more than it wants, by weight."""
    parts = kv_budget.allocate(
        [
            kv_budget.Engine(lease_id=lease.lease_id, weight=book.of(lease).share.share_weight, cap=most)
            for lease, most in wanted.items()
        ],
        free,
        block_tokens=book.unit,
    )
    return dict(zip(wanted, parts, strict=True))


def _tell(books: Books, lease: Lease, state: KvState, budget: int) -> None:
    before, state.budget = state.budget, budget
    if state.excess == 0:
        # What tells it more tells it as well that it need not free anything.
        state.over_since = state.order = None
    books.announce(lease, DirectiveReason.KV_BUDGET)
    books.happened(
        EventKind.KV_BUDGET_CHANGED,
        lease,
        tokens=budget,
        before=before,
        resident=state.resident,
        demand="unknown" if state.demand is None else state.demand,
        revision=lease.revision,
    )


def go_on(books: Books, lease: Lease, now: float) -> None:
    """What is due about an engine: what it was refused counts no more, or it keeps more than its budget for long.

    Such an engine is ordered to free, and pressed when it does not answer.
    """
    state = lease.kv
    if state is None or not lease.alive:
        return
    if state.missed and state.missed_until <= now:
        books.device_of(lease).kv.miss(lease, 0, now)
    if state.over_since is None:
        return
    if state.order is None:
        due = state.over_since + books.config.kv.drain_s
        if due <= now:
            order(books, lease, state, now, books.config.preemption.grace_s)
        else:
            books.later(due, "kv", lease)
    elif state.order.level is ReclaimLevel.SOFT:
        silent = state.order.press_at <= now and not state.order.acknowledged
        if silent or state.order.deadline <= now:
            _press(books, lease, state.order)


def order(books: Books, lease: Lease, state: KvState, now: float, grace_s: float) -> None:
    """Orders an engine to free what it keeps beyond its budget."""
    books.kv_orders += 1
    state.order = KvOrder(
        reclaim_id=f"kv-{books.epoch}-{books.kv_orders}",
        press_at=now + min(preempting.ANSWER_S, grace_s * preempting.ANSWER_SHARE),
        deadline=now + grace_s,
    )
    books.accounts.of(lease.request.namespace, lease.request.holder).reclaims += 1
    books.announce(lease, DirectiveReason.PREEMPTION)
    books.happened(
        EventKind.RECLAIM_REQUESTED,
        lease,
        reclaim_id=state.order.reclaim_id,
        kv_tokens=state.excess,
        grace_s=grace_s,
    )
    books.later(state.order.press_at, "kv", lease)
    books.later(state.order.deadline, "kv", lease)


def delay(books: Books, lease: Lease, seconds: float) -> None:
    """Gives an engine that keeps more than its budget so much more time."""
    state = lease.kv
    if state is None or state.over_since is None:
        return
    state.over_since += seconds
    if state.order is None:
        books.later(state.over_since + books.config.kv.drain_s, "kv", lease)
    else:
        state.order.delay(seconds)
        books.later(state.order.press_at, "kv", lease)
        books.later(state.order.deadline, "kv", lease)


def _press(books: Books, lease: Lease, asked: KvOrder) -> None:
    """Tells an engine that has not freed in time that it is pressing."""
    asked.level = ReclaimLevel.HARD
    books.announce(lease, DirectiveReason.PREEMPTION)
    books.happened(EventKind.RECLAIM_ESCALATED, lease, reclaim_id=asked.reclaim_id)


# Reservations ---------------------------------------------------------------------------------------------------------


def reserve(books: Books, asked: ReservationRequest, ticket: Ticket, now: float) -> DeviceBook:
    """Reserves tokens for an engine, now or when its budget allows; returns the device. The answer is an effect.

    Raises:
        LeaseNotFound: The lease is unknown or has ended.
        Fenced: The fence is not the lease's.
        InvalidRequest: The lease is no KV engine.
        IdempotencyMismatch: The request id was used with another number of tokens.
        ExceedsCapacity: It can never fit.
        QueueFull: Too many reservations wait or are open already.
    """
    lease = books.holder(asked.lease_id, asked.fence, now)
    device = books.device_of(lease)
    book, state = device.kv, lease.kv
    if state is None:
        raise errors.InvalidRequest([("lease_id", "the lease is no KV engine: it was asked for without kv")])
    most = max(1, book.total * books.config.kv.engine_cap_permille // 1000)
    if state.share.max_tokens is not None:
        most = min(most, state.share.max_tokens)
    # One that borrows may have more than its part for a while.
    if asked.tokens > max(most, state.budget):
        raise errors.ExceedsCapacity(
            f"{asked.tokens} tokens are more than the engine can ever have, which is {most}",
            requested_tokens=asked.tokens,
            capacity_tokens=most,
        )
    known = _known(book, lease, asked)
    if isinstance(known, Reservation):
        known.ticket = None
        books.pending.append(effects.Reserved(ticket, known))
        return device
    if book.taken_places >= books.config.kv.max_reservations:
        raise errors.QueueFull("too many KV reservations wait or are open already")
    waiting = WaitingReservation(
        ticket=ticket,
        lease=lease,
        tokens=asked.tokens,
        request_id=asked.request_id,
        deadline=now + asked.wait_s,
        again=known is not None,
    )
    # What it wants counts as work and as demand before budgets are looked at, so that it wakes an idle engine.
    book.wait(waiting)
    publish(books, device, now)
    if waiting in book.waiting:
        if asked.wait_s > 0.0:
            books.later(waiting.deadline, "kv", waiting)
        else:
            _refuse(books, book, waiting, now)
    return device


def _known(book: KvBook, lease: Lease, asked: ReservationRequest) -> Reservation | WaitingReservation | None:
    """The reservation, open or waiting, that this request repeats."""
    known = book.named(lease, asked.request_id)
    if known is not None and known.tokens != asked.tokens:
        raise errors.IdempotencyMismatch(request_id=asked.request_id)
    return known


def _serve_waiting(books: Books, book: KvBook, now: float) -> None:
    """Grants waiting reservations that fit into the budgets of their engines, the oldest of each engine first."""
    blocked: set[Lease] = set()
    for waiting in book.waiting:
        state = book.of(waiting.lease)
        known = book.named(waiting.lease, waiting.request_id)
        if isinstance(known, Reservation):
            book.leave(waiting.ticket)
            known.ticket = None
            books.pending.append(effects.Reserved(waiting.ticket, known))
            continue
        if waiting.lease in blocked or state.resident + waiting.tokens > state.budget:
            blocked.add(waiting.lease)
            continue
        reservation = Reservation(
            reservation_id=books.names.lease_id(),
            ticket=waiting.ticket,
            lease=waiting.lease,
            tokens=waiting.tokens,
            request_id=waiting.request_id,
            expires_at=now + books.config.kv.reservation_s,
        )
        book.fulfil(waiting, reservation)
        _watch_oldest(books, book)
        books.pending.append(effects.Reserved(waiting.ticket, reservation))


def _watch_oldest(books: Books, book: KvBook) -> None:
    """Puts the end of the oldest open reservation on the agenda, where one for each would only wait to do nothing."""
    oldest = next(iter(book.reservations.values()), None)
    if oldest is not None and not book.watched:
        book.watched = True
        books.later(oldest.expires_at, "kv", oldest)


def _refuse(books: Books, book: KvBook, waiting: WaitingReservation, now: float) -> None:
    """Refuses one that has waited long enough; room is made for a while all the same, so that a second try succeeds."""
    state = book.of(waiting.lease)
    free = max(0, state.budget - state.resident)
    book.leave(waiting.ticket)
    until = now + books.config.kv.drain_s
    book.miss(waiting.lease, max(state.missed, waiting.tokens), until)
    books.later(until, "kv", waiting.lease)
    error = errors.InsufficientTokens(
        f"{waiting.tokens} tokens are wanted, {free} of the budget of {state.budget} are free; wait, or try again soon",
        requested_tokens=waiting.tokens,
        available_tokens=free,
    )
    books.pending.append(effects.ReservationRefused(waiting.ticket, error))


def give_up(books: Books, waiting: WaitingReservation, now: float) -> None:
    """A reservation has waited long enough."""
    book = books.device_of(waiting.lease).kv
    if waiting in book.waiting:
        _refuse(books, book, waiting, now)


def complete(books: Books, reservation_id: str) -> DeviceBook | None:
    """Returns what was reserved; the device, ``None`` when it had been returned before.

    Raises:
        ReservationNotFound: No such reservation is known, nor was of late.
    """
    for device in books.devices.values():
        reservation = device.kv.reservations.get(reservation_id)
        if reservation is not None:
            _close(books, device.kv, reservation)
            return device
    if reservation_id not in books.kv_completed:
        raise errors.ReservationNotFound(reservation_id=reservation_id)
    return None


def expire(books: Books, device: DeviceBook, now: float) -> None:
    """Abandoned reservations return by themselves."""
    book = device.kv
    book.watched = False
    while book.reservations:
        oldest = next(iter(book.reservations.values()))
        if oldest.expires_at > now:
            break
        _close(books, book, oldest)
        books.happened(EventKind.KV_RESERVATION_EXPIRED, oldest.lease, tokens=oldest.tokens)
    _watch_oldest(books, book)


def _close(books: Books, book: KvBook, reservation: Reservation) -> None:
    book.complete(reservation)
    state = book.of(reservation.lease)
    if state.excess == 0:
        _relieve(books, reservation.lease, state)
    books.kv_completed[reservation.reservation_id] = None
    if len(books.kv_completed) > books.config.kv.max_reservations:
        books.kv_completed.popitem(last=False)


def shut(books: Books) -> None:
    """The server drains: whoever waits to reserve hears so."""
    for device in books.devices.values():
        for waiting in device.kv.waiting:
            device.kv.leave(waiting.ticket)
            books.pending.append(effects.ReservationRefused(waiting.ticket, errors.ShuttingDown()))


def withdraw(books: Books, ticket: Ticket) -> DeviceBook | None:
    """The caller of a reservation has gone: what waits is taken out, what was granted to nobody else returns."""
    for device in books.devices.values():
        if device.kv.leave(ticket) is not None:
            return device
        for reservation in device.kv.reservations.values():
            if reservation.ticket == ticket:
                _close(books, device.kv, reservation)
                return device
    return None
