"""What KV budgets, reservations and loans must be by all that was said, kept in books of its own.

Every budget is followed through the events that tell it, in their order, with a charge that rises with it and falls
only with a report; so it is seen when tokens are promised twice. What everybody should have in the end is computed with
exact fractions from what the engines asked for and said last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from arbiter_sidecar.arbiter import effects
from arbiter_sidecar.ledger.kv import UNIT_DIVISOR
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.policy import preemption
from arbiter_sidecar.policy.kv_budget import Engine
from arbiter_sidecar.policy.preemption import Candidate, Requester
from arbiter_sidecar.requests import KvShare, KvUsage, PreemptionRequest
from arbiter_sidecar.types import DonationOutcome, EventKind, LeaseId, Priority, ReclaimLevel, Ticket
from tests.arbiter.kv_stage import KvDesk
from tests.policy import kv_budget_oracle, preemption_oracle

#: A lower budget is drained within so many seconds, or there is an order to.
DRAIN_S = 5.0
#: So many seconds after an order it is pressing at the latest, when nothing else was agreed.
GRACE_S = 2.0


@dataclass(slots=True)
class Known:
    """What was said about one engine.

    Attributes:
        lease: Its lease, of which only its life, its applied revision and the core's own figures are read.
        share: What it asked for.
        usage: What it said last.
        budget: What it was told last.
        charge: What it may rightly keep: every budget since it last confirmed one, and what it said that it keeps.
        lowered_at: Revision of the last lower budget.
        over_since: Since when it is known to keep more than its budget.
        missed: The most that it was refused of late, which counts as wanted until …
        missed_until: … then, or until it has something.
    """

    lease: Lease
    share: KvShare
    usage: KvUsage | None = None
    budget: int = 0
    charge: int = 0
    lowered_at: int = 0
    over_since: float | None = None
    missed: int = 0
    missed_until: float = 0.0


@dataclass(slots=True)
class Wanted:
    """What became of one request for a reservation."""

    lease: Lease
    tokens: int
    deadline: float
    request_id: str = ""
    reservation_id: str = ""
    closed: bool = False
    gone: bool = False
    granted_at: float = 0.0


@dataclass(slots=True)
class KvOracle:
    """The books, what each effect means for them, and the laws."""

    desk: KvDesk
    total: int
    permille: int
    engines: dict[LeaseId, Known] = field(default_factory=dict)
    wanted: dict[Ticket, Wanted] = field(default_factory=dict)
    asked: dict[Ticket, bool] = field(default_factory=dict)
    seen: int = 0

    # What was said ----------------------------------------------------------------------------------------------------

    def reserved(self, known: Known) -> int:
        """What an engine has reserved."""
        mine = (each for each in self.wanted.values() if each.lease is known.lease)
        return sum(each.tokens for each in mine if each.reservation_id and not each.closed)

    def waiting(self, known: Known) -> int:
        """What of its requests waits."""
        mine = [each for each in self.wanted.values() if each.lease is known.lease]
        waits = [each for each in mine if not each.reservation_id and not each.closed]
        named = {each.request_id: each.tokens for each in waits if each.request_id}
        return sum(each.tokens for each in waits if not each.request_id) + sum(named.values())

    def resident(self, known: Known) -> int:
        """What an engine keeps."""
        return max(self.reserved(known), known.usage.resident_tokens if known.usage is not None else 0)

    def active(self, known: Known) -> bool:
        """Whether it has work."""
        works = known.usage is not None and known.usage.active
        return works or self.reserved(known) + self.waiting(known) + known.missed > 0

    def demand(self, known: Known) -> int | None:
        """What it could use."""
        if known.usage is None or known.usage.demand_tokens is None:
            return None
        return max(known.usage.demand_tokens, self.reserved(known) + max(self.waiting(known), known.missed))

    def heard(self, known: Known, said: KvUsage | None, revision: int) -> None:
        """A heartbeat was taken in; what it confirms is free before anything else happens."""
        known.usage = said if said is not None else known.usage
        self.confirmed(known, revision)

    def confirmed(self, known: Known, revision: int) -> None:
        """An engine that has applied its newest lower budget keeps that, and what it says, and no more."""
        if revision >= known.lowered_at:
            known.charge = min(known.charge, max(known.budget, self.resident(known)))

    # What happened ----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Takes in the effects since the last look, in their order, and checks the laws."""
        fresh, self.seen = self.desk.effects[self.seen :], len(self.desk.effects)
        for known in self.engines.values():
            if known.missed_until <= self.desk.now:
                known.missed = 0
        for effect in fresh:
            if isinstance(effect, effects.Ended):
                self.ended(effect.lease)
            elif isinstance(effect, effects.Reserved):
                self.granted(effect)
            elif isinstance(effect, effects.ReservationRefused):
                self.refused(effect.ticket)
            elif isinstance(effect, effects.PlanClosed):
                self.each_request_for_tokens_is_answered_once(effect)
            elif isinstance(effect, effects.Happened) and effect.kind is EventKind.KV_BUDGET_CHANGED:
                self.told(effect)
            elif isinstance(effect, effects.Happened) and effect.kind is EventKind.KV_RESERVATION_EXPIRED:
                self.expired(effect)
        self.laws()

    def told(self, event: effects.Happened) -> None:
        """A budget changed: a fall is told at once, a rise has its tokens."""
        known = self.engines[LeaseId(event.lease_id)]
        budget = int(event.fields["tokens"])
        assert int(event.fields["before"]) == known.budget != budget
        if budget < known.budget:
            known.lowered_at = int(event.fields["revision"])
        known.budget = budget
        known.charge = max(known.charge, budget)
        if self.resident(known) <= budget:
            known.over_since = None
        self.tokens_are_promised_once()

    def tokens_are_promised_once(self) -> None:
        """All that engines may rightly keep together is there."""
        assert sum(known.charge for known in self.engines.values()) <= self.total

    def ended(self, lease: Lease) -> None:
        """An engine has gone, with its tokens and with all it reserved or waited for."""
        del self.engines[lease.lease_id]
        for wanted in self.wanted.values():
            if wanted.lease is lease and wanted.reservation_id:
                wanted.closed = True

    def granted(self, effect: effects.Reserved) -> None:
        """A reservation was granted: to one who waited, within the budget."""
        wanted, reservation = self.wanted[effect.ticket], effect.reservation
        assert not any((wanted.closed, wanted.gone, wanted.reservation_id))
        assert (reservation.lease, reservation.tokens) == (wanted.lease, wanted.tokens)
        first = not any(each.reservation_id == reservation.reservation_id for each in self.wanted.values())
        wanted.reservation_id = reservation.reservation_id
        # One that repeats an open one is answered with that, and counts once.
        wanted.closed = not first
        if first:
            wanted.granted_at = self.desk.now
            self.engines[wanted.lease.lease_id].missed = 0

    def refused(self, ticket: Ticket) -> None:
        """A reservation was refused: to one who waited."""
        wanted = self.wanted[ticket]
        assert not any((wanted.closed, wanted.gone, wanted.reservation_id))
        wanted.closed = True
        known = self.engines.get(wanted.lease.lease_id)
        if known is not None:
            # It may ask again: room is made for that as long as draining may take.
            known.missed, known.missed_until = max(known.missed, wanted.tokens), self.desk.now + DRAIN_S

    def returned(self, reservation_id: str) -> None:
        """A reservation was returned."""
        for wanted in self.wanted.values():
            if wanted.reservation_id == reservation_id:
                wanted.closed = True

    def expired(self, event: effects.Happened) -> None:
        """An open reservation returned by itself: the oldest of its engine, after its whole time."""
        mine = (each for each in self.wanted.values() if each.lease.lease_id == event.lease_id)
        oldest = next(each for each in mine if each.reservation_id and not each.closed)
        assert oldest.tokens == int(event.fields["tokens"])
        assert self.desk.now >= oldest.granted_at + self.desk.books.config.kv.reservation_s
        self.returned(oldest.reservation_id)

    def each_request_for_tokens_is_answered_once(self, effect: effects.PlanClosed) -> None:
        """Whoever asks for tokens of others has one answer, if it is still there."""
        assert self.asked[effect.ticket]
        self.asked[effect.ticket] = False

    # Laws -------------------------------------------------------------------------------------------------------------

    def laws(self) -> None:
        """What holds after every command."""
        self.figures_are_those_of_the_engines()
        self.tokens_are_promised_once()
        self.reservations_are_counted_exactly()
        self.each_reservation_is_answered_once()
        self.nobody_waits_for_a_reservation_that_fits()
        self.loans_are_between_the_living_and_for_work()
        self.excess_is_drained_or_ordered()
        self.no_token_lies_idle_that_somebody_lacks()

    def figures_are_those_of_the_engines(self) -> None:
        """The core's figures are those of the events and the reports."""
        book = self.desk.book
        assert set(self.engines) == {lease.lease_id for lease in book.engines.values()}
        for known in self.engines.values():
            state = self.desk.state(known.lease)
            assert (state.budget, state.charged) == (known.budget, known.charge)
            assert (state.active, state.resident) == (self.active(known), self.resident(known))
            assert state.present_demand == self.demand(known)
        assert book.charged == sum(known.charge for known in self.engines.values())
        assert book.floors == sum(known.share.min_tokens for known in self.engines.values()) <= self.total

    def reservations_are_counted_exactly(self) -> None:
        """What is reserved are the open reservations, to the token; nothing leaks."""
        for known in self.engines.values():
            assert self.desk.state(known.lease).reserved == self.reserved(known)
            assert self.desk.state(known.lease).wanted == self.waiting(known)
        held = {each.reservation_id for each in self.wanted.values() if each.reservation_id and not each.closed}
        assert set(self.desk.book.reservations) == held

    def each_reservation_is_answered_once(self) -> None:
        """Whoever asked for a reservation waits, has one answer, or has gone."""
        waits = {each.ticket for each in self.desk.book.waiting}
        for ticket, wanted in self.wanted.items():
            assert (ticket in waits) + (ticket in self.desk.answers) + wanted.gone == 1
            assert ticket not in waits or wanted.deadline > self.desk.now

    def nobody_waits_for_a_reservation_that_fits(self) -> None:
        """The oldest reservation of each engine that waits does not fit into its budget."""
        oldest: dict[LeaseId, int] = {}
        for waiting in self.desk.book.waiting:
            oldest.setdefault(waiting.lease.lease_id, waiting.tokens)
        for lease_id, tokens in oldest.items():
            known = self.engines[lease_id]
            assert self.resident(known) + tokens > known.budget

    def loans_are_between_the_living_and_for_work(self) -> None:
        """A loan ends with its donor, with its borrower, and with the borrower's need."""
        book = self.desk.book
        for loan in book.loans:
            borrower = self.engines[loan.borrower.lease_id]
            assert loan.donor.lease_id in self.engines
            assert 0 <= loan.given <= loan.taken
            asks = book.plan is not None and book.plan.requester is loan.borrower
            assert asks or (self.active(borrower) and not loan.borrower.suspect)
            assert book.plan is not None or 0 < loan.given == loan.taken
        if book.plan is not None:
            plan = book.plan
            assert plan.requester.alive
            for donation in plan.donations.values():
                assert donation.confirmed <= donation.planned
                assert donation.outcome is not DonationOutcome.OPEN or donation.loan in book.loans
        assert sum(book.lent(lease) for lease in book.engines.values()) == sum(loan.taken for loan in book.loans)
        assert sum(book.borrowed(lease) for lease in book.engines.values()) == sum(loan.given for loan in book.loans)

    def excess_is_drained_or_ordered(self) -> None:
        """An engine that keeps more than its budget for too long has an order to free it; nobody else has one."""
        now = self.desk.now
        for known in self.engines.values():
            state = self.desk.state(known.lease)
            excess = self.resident(known) > known.budget
            if not excess:
                known.over_since = None
                assert state.order is None
            elif known.over_since is None:
                known.over_since = now
            elif now >= known.over_since + DRAIN_S:
                assert state.order is not None
            if state.order is not None and now >= state.order.deadline:
                assert state.order.level is ReclaimLevel.HARD

    def no_token_lies_idle_that_somebody_lacks(self) -> None:
        """Nobody is told more than its part, and only because tokens are not free yet is anybody told less."""
        unit = self.unit
        targets = self.targets(exactly=False)
        missing = 0
        for lease_id, target in targets.items():
            known = self.engines[lease_id]
            assert known.budget <= target
            assert known.budget >= min(target, known.charge) or known.budget == target
            missing += max(0, target - known.charge)
        free = self.total - sum(known.charge for known in self.engines.values())
        if missing <= free:
            assert {lease_id: self.engines[lease_id].budget for lease_id in targets} == targets
        else:
            short = [target - self.engines[lease_id].charge for lease_id, target in targets.items()]
            assert free < unit or all(each < unit for each in short)

    # What everybody should have ---------------------------------------------------------------------------------------

    @property
    def unit(self) -> int:
        """What budgets are counted in: blocks that are whole for everybody, unless those are too coarse."""
        blocks = {known.share.block_tokens for known in self.engines.values()}
        unit = math.lcm(*blocks)
        return unit if len(blocks) == 1 or unit * UNIT_DIVISOR <= self.total else 1

    def targets(self, *, exactly: bool) -> dict[LeaseId, int]:
        """Everybody's share by the definition, and what is lent and borrowed.

        A change of demand by a twentieth or less need not have been noticed, unless ``exactly``.
        """
        unit, engines = self.unit, []
        for known in self.engines.values():
            demand = self.demand(known)
            if not exactly:
                used = self.desk.state(known.lease).demand
                assert (used is None) is (demand is None)
                if demand is not None and used is not None:
                    assert abs(demand - used) * 20 <= used
                    demand = used
            cap = known.share.max_tokens
            engines.append(
                Engine(
                    lease_id=known.lease.lease_id,
                    weight=known.share.share_weight,
                    floor=-(-known.share.min_tokens // unit),
                    cap=None if cap is None else cap // unit,
                    demand=None if demand is None else -(-demand // unit),
                    active=self.active(known),
                    healthy=not known.lease.suspect,
                )
            )
        shares = kv_budget_oracle.allocate(engines, self.total // unit, self.permille)
        targets = {each.lease_id: share * unit for each, share in zip(engines, shares, strict=True)}
        for loan in self.desk.book.loans:
            donor = loan.donor.lease_id
            floor = min(self.engines[donor].share.min_tokens, targets[donor])
            taken = min(loan.taken, targets[donor] - floor)
            targets[donor] -= taken
            if not loan.borrower.suspect:
                targets[loan.borrower.lease_id] += min(taken, loan.given)
        if self.desk.book.plan is not None:
            for lease_id, donation in self.desk.book.plan.donations.items():
                if donation.outcome is DonationOutcome.OPEN:
                    targets[LeaseId(lease_id)] = min(targets[LeaseId(lease_id)], donation.limit)
        return targets

    def lent_from_the_lowest_and_no_more_than_needed(self, asked: PreemptionRequest, plan: preemption.Plan) -> None:
        """A plan is the one of the definition, of engines whose least important work counts less than the asker's."""
        known = self.engines[LeaseId(asked.lease_id)]
        own = known.lease.request.priority
        requester = Requester(priority=own if asked.priority is None else asked.priority, lease_id=known.lease.lease_id)
        candidates = [self._candidate(each) for each in self.engines.values()]
        assert plan.need == -(-asked.need_tokens // self.unit) * self.unit
        preemption_oracle.check(
            plan,
            candidates,
            requester,
            self.desk.now,
            preemption.KV_RULES,
            allow_partial=asked.allow_partial,
        )

    def _candidate(self, known: Known) -> Candidate:
        resident, said, own = self.resident(known), known.usage, known.lease.request.priority
        spare = max(0, known.budget - resident) + (said.freeable_tokens if said is not None else 0)
        above = max(0, known.budget - known.share.min_tokens)
        running: Priority = own
        if said is not None and said.resident_tokens > 0:
            running = said.lowest_running_priority
        state = self.desk.state(known.lease)
        return Candidate(
            lease_id=known.lease.lease_id,
            priority=own,
            running_priority=running,
            granted_at=known.lease.created_at,
            shrinkable=min(above, spare) // self.unit * self.unit,
            preemptible=known.lease.request.preemptible,
            healthy=not known.lease.suspect,
            donated_at=tuple(state.donated_at),
            spared_until=state.spared_until,
        )
