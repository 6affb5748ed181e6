"""What must hold of every preemption, whatever happens around it: kept in books of its own, from the outside only."""

from __future__ import annotations

from dataclasses import dataclass, field

from arbiter_sidecar.arbiter import effects
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.policy.preemption import COOLDOWN_S, DONATION_LIMIT, DONATION_WINDOW_S, SHRINK_HOLD_S
from arbiter_sidecar.types import EventKind, Priority, Ticket
from tests.arbiter.desk import Desk

#: Leases are taken whole much sooner than they would be outside, so that it happens at all.
REVOKE_HOLD_S = 3.0
SETTLE_S = 4.0


@dataclass(slots=True)
class Order:
    """One order to give memory back.

    Attributes:
        at: When it was sent.
        plan_id: The preemption.
        deadline: When it had to be obeyed.
        whole: The lease as a whole was wanted.
        machine: Nobody asked for it but the machine.
        baseline: What was charged or measured when it was sent.
        limit: What it left the holder.
        answered: The holder has answered.
    """

    at: float
    plan_id: str
    deadline: float
    whole: bool
    machine: bool
    baseline: int
    limit: int
    answered: bool = False


@dataclass(slots=True)
class Watch:
    """Every order, credit and answer so far."""

    gap: int
    orders: dict[str, list[Order]] = field(default_factory=dict)
    asked_by: dict[str, str] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    credits: dict[str, int] = field(default_factory=dict)
    confirmed: dict[tuple[str, str], int] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)
    closed_at: dict[str, float] = field(default_factory=dict)
    tickets: dict[Ticket, bool] = field(default_factory=dict)
    requesters: dict[str, str] = field(default_factory=dict)
    taken: set[tuple[str, str]] = field(default_factory=set)
    batches: dict[str, list[tuple[str, int, bool]]] = field(default_factory=dict)

    def happened(self, event: effects.Happened, lease: Lease | None, charge: int, limit: int, now: float) -> None:
        """One event of a preemption.

        ``lease`` is the one it names, ``charge`` what is left alone for its sake, ``limit`` what it was told by then.
        """
        plan_id = event.fields.get("plan_id", "")
        if event.kind is EventKind.PREEMPTION_PLANNED:
            self.asked_by[plan_id] = event.fields["priority"]
            self.requesters[plan_id] = event.lease_id
            self.named.add(event.request_id)
        elif event.kind is EventKind.RECLAIM_REQUESTED:
            assert lease is not None
            self._order(event, lease, charge, limit, now)
        elif event.kind is EventKind.PREEMPTION_SETTLED:
            self.closed_at[plan_id] = now
            if event.fields["outcome"] == "enough" and event.lease_id:
                gained = int(event.fields["credited_bytes"])
                assert gained <= min(int(event.fields["confirmed_bytes"]), int(event.fields["need_bytes"]))
                self.settled[event.lease_id] = self.settled.get(event.lease_id, 0) + gained

    def _order(self, event: effects.Happened, lease: Lease, charge: int, limit: int, now: float) -> None:
        plan_id = event.fields["plan_id"]
        asked_by, whole = self.asked_by[plan_id], event.fields["whole"] == "True"
        earlier = self.orders.setdefault(lease.lease_id, [])
        machine = asked_by == "machine"
        if not machine:
            self.victims_are_lower_and_held_long_enough(lease, Priority[asked_by], whole, now)
            self.nobody_gives_too_often(earlier, now)
        self.victims_cannot_take_back(lease.lease_id, self.requesters[plan_id])
        if not whole:
            self.nobody_goes_below_its_minimum(lease)
        self.batches.setdefault(plan_id, []).append((lease.lease_id, int(event.fields["memory_bytes"]), whole))
        deadline = now + float(event.fields["grace_s"])
        if earlier and earlier[-1].plan_id == plan_id:
            # It is asked for more: what it has given so far counts on.
            charge = earlier[-1].baseline
        elif whole:
            charge = min(charge, int(event.fields["memory_bytes"]))
        earlier.append(Order(now, plan_id, deadline, whole, machine, charge, limit))

    def victims_are_lower_and_held_long_enough(self, lease: Lease, asked_by: Priority, whole: bool, now: float) -> None:
        """Who is asked stands below the requester by the gap at least, and has been held for its minimum time."""
        assert asked_by - lease.request.priority >= self.gap
        assert now - lease.created_at >= (REVOKE_HOLD_S if whole else SHRINK_HOLD_S)

    def nobody_gives_too_often(self, earlier: list[Order], now: float) -> None:
        """Who gave twice of late, or to a plan that has just closed, is left in peace."""
        assert sum(now - each.at < DONATION_WINDOW_S for each in earlier) < DONATION_LIMIT
        spared = [self.closed_at[each.plan_id] for each in earlier if each.plan_id in self.closed_at]
        assert all(now >= moment + COOLDOWN_S for moment in spared[-1:])

    def victims_cannot_take_back(self, donor: str, requester: str) -> None:
        """Nobody takes from one that took from it."""
        assert donor != requester
        if requester:
            self.taken.add((requester, donor))
            assert (donor, requester) not in self.taken

    @staticmethod
    def nobody_goes_below_its_minimum(lease: Lease) -> None:
        """Who is made to shrink keeps its minimum."""
        assert lease.limit_bytes >= lease.elastic.floor_bytes

    def orders_add_up_to_the_need(self, device: DeviceBook) -> None:
        """What a round asks of all donors together is what was missing: to the byte, unless whole leases are taken.

        Less only where less is welcome; and no whole lease is taken without which it would be enough.
        """
        plan = device.plan
        if plan is None or plan.plan_id not in self.batches:
            return
        batch = self.batches[plan.plan_id]
        asked = sum(amount for _, amount, _ in batch)
        named = {lease_id for lease_id, _, _ in batch}
        before = sum(
            each.confirmed_bytes if each.lease.alive else each.planned_bytes
            for lease_id, each in plan.donations.items()
            if lease_id not in named
        )
        before += sum(plan.donations[lease_id].planned_bytes - amount for lease_id, amount, _ in batch)
        missing = plan.need_bytes - before
        wholes = [amount for _, amount, whole in batch if whole]
        if asked < missing:
            assert plan.partial
        elif not wholes or len(wholes) < len(batch):
            assert asked == missing
        assert not any(asked - amount >= missing for amount in wholes)

    def left_by(self, lease: Lease, limit: int, freed: int | None) -> int:
        """What a holder says that it keeps when it answers its order: all that was left to it, or what it has freed.

        Its words are about the order that it answers, whatever it has been told since.
        """
        order = self.orders[lease.lease_id][-1]
        return max(limit, order.limit, 0 if freed is None else order.baseline - freed)

    def answered(self, lease: Lease) -> None:
        """A holder answers what it was asked last, or does what it was told last."""
        for order in self.orders.get(lease.lease_id, [])[-1:]:
            order.answered = True

    def preempted(self, lease: Lease, now: float) -> None:
        """A lease was revoked: for an order whose time was up, because it was silent or wanted whole."""
        order = self.orders[lease.lease_id][-1]
        assert order.deadline <= now
        assert order.whole or not order.answered

    def delayed(self, seconds: float) -> None:
        """The arbiter was away: every deadline moved."""
        for orders in self.orders.values():
            for order in orders:
                order.deadline += seconds

    def each_freed_byte_is_credited_once(self, lease: Lease) -> None:
        """What a lease has gained is what was confirmed for it, or less."""
        before = self.credits.get(lease.lease_id, 0)
        assert before <= lease.credit_bytes <= before + self.settled.pop(lease.lease_id, 0)
        self.credits[lease.lease_id] = lease.credit_bytes

    def confirmed_is_what_the_books_show(self, device: DeviceBook, charges: dict[str, int]) -> None:
        """An open plan counts what the books show, and not a byte more."""
        plan = device.plan
        if plan is None:
            return
        for lease_id, donation in plan.donations.items():
            key = (plan.plan_id, lease_id)
            assert 0 <= donation.confirmed_bytes <= donation.planned_bytes
            if donation.confirmed_bytes > self.confirmed.get(key, 0):
                self.confirmed[key] = donation.confirmed_bytes
                assert donation.confirmed_bytes <= self.orders[lease_id][-1].baseline - charges[lease_id]
        kept = plan.confirmed_bytes if plan.requester is not None else 0
        assert device.earmarked_bytes == kept
        assert plan.requester is None or plan.requester.alive

    def every_preemption_is_answered_once(self, desk: Desk) -> None:
        """Every caller of a preemption has one answer, waits, or has gone."""
        open_plans = [device.plan for device in desk.books.devices.values() if device.plan is not None]
        for ticket, gone in self.tickets.items():
            asked = [plan.asked for plan in open_plans if plan.asked is not None]
            waits = any(ticket in each.tickets for each in (*asked, *desk.books.asks.waiting.values()))
            assert (ticket in desk.closed) + waits + gone == 1
