"""The book of KV tokens of one device: who may keep how many, who has reserved some, and who lends to whom.

A budget is what an engine was told. Its charge is what must be taken to be resident: it rises with the budget and falls
only when the engine says that it has applied a lower one and keeps no more.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import TYPE_CHECKING

from arbiter_sidecar.policy import kv_budget
from arbiter_sidecar.requests import KvShare, KvUsage
from arbiter_sidecar.types import MIB, DeviceId, DonationOutcome, Priority, ReclaimLevel, Ticket

if TYPE_CHECKING:
    from arbiter_sidecar.ledger.leases import Lease
    from arbiter_sidecar.ledger.plans import Asked

#: Without a configured number half of a device's capacity is taken for KV caches, at 2 MiB for each block of 16 tokens:
#: 128 KiB a token, as an 8-billion-parameter model with grouped heads needs in 16 bits.
BLOCK_BYTES = 2 * MIB
BLOCK_TOKENS = 16
#: A small device has so many blocks all the same, or no engine could hold a prompt.
LEAST_BLOCKS = 256
#: Units larger than one part in this many of all tokens are not kept to: budgets would become too coarse.
UNIT_DIVISOR = 64
#: Loans of one engine that are remembered for the limit on donations; more than any window may hold.
MAX_DONATIONS = 16


def derived_tokens(capacity_bytes: int) -> int:
    """The tokens of a device for which none are configured."""
    return max(capacity_bytes // 2 // BLOCK_BYTES, LEAST_BLOCKS) * BLOCK_TOKENS


class Reservation:
    """Tokens that an engine has reserved for one piece of work.

    Attributes:
        reservation_id: Its name, unguessable.
        ticket: Whoever waited for it; ``None`` when it was asked for again, so that no caller's end undoes it.
        lease: The engine.
        tokens: What was reserved, and is returned, whatever was used.
        request_id: What the engine calls it; empty for nothing.
        expires_at: When it returns by itself, monotonic seconds.
    """

    __slots__ = ("expires_at", "lease", "request_id", "reservation_id", "ticket", "tokens")

    def __init__(
        self, *, reservation_id: str, ticket: Ticket, lease: Lease, tokens: int, request_id: str, expires_at: float
    ) -> None:
        self.reservation_id = reservation_id
        self.ticket: Ticket | None = ticket
        self.lease = lease
        self.tokens = tokens
        self.request_id = request_id
        self.expires_at = expires_at

    @property
    def device_id(self) -> DeviceId:
        """The device."""
        return self.lease.device_id


class WaitingReservation:
    """A reservation that does not fit into its engine's budget yet.

    Attributes:
        ticket: Its caller.
        lease: The engine.
        tokens: What it wants.
        request_id: What the engine calls it.
        deadline: When it gives up, monotonic seconds.
        again: It repeats one that waits, and wants nothing besides.
    """

    __slots__ = ("again", "deadline", "lease", "request_id", "ticket", "tokens")

    def __init__(
        self, *, ticket: Ticket, lease: Lease, tokens: int, request_id: str, deadline: float, again: bool = False
    ) -> None:
        self.ticket = ticket
        self.lease = lease
        self.tokens = tokens
        self.request_id = request_id
        self.deadline = deadline
        self.again = again

    @property
    def device_id(self) -> DeviceId:
        """The device."""
        return self.lease.device_id

    @property
    def wanted(self) -> int:
        """What it adds to the needs of its engine."""
        return 0 if self.again else self.tokens


class KvOrder:
    """An order to an engine to free tokens.

    Attributes:
        reclaim_id: What the engine calls it.
        level: Urgency.
        acknowledged: The engine has answered.
        press_at: When it is told that it is pressing if it has not, monotonic seconds.
        deadline: When it should have freed them, monotonic seconds.
    """

    __slots__ = ("acknowledged", "deadline", "level", "press_at", "reclaim_id")

    def __init__(self, *, reclaim_id: str, press_at: float, deadline: float) -> None:
        self.reclaim_id = reclaim_id
        self.press_at = press_at
        self.level = ReclaimLevel.SOFT
        self.acknowledged = False
        self.deadline = deadline

    def delay(self, seconds: float) -> None:
        """Moves its times into the future, because the arbiter itself had been away."""
        self.press_at += seconds
        self.deadline += seconds


class KvState:
    """What is known of one KV engine.

    Attributes:
        share: What it asked for.
        usage: Its last report; ``None`` before the first.
        budget: Tokens it was told it may keep.
        charged: Tokens that must be taken to be its own.
        reserved: Σ of its reservations.
        wanted: Σ of its reservations that wait.
        missed: The largest that it was refused of late, and may ask for again.
        missed_until: Until when that counts, monotonic seconds.
        advised: The budget it would be told if the arbiter did more than observe; ``None`` when it does.
        demand: The demand with which budgets were computed last; ``None``: unknown.
        lowered_at: Revision of the directive with the last lower budget.
        over_since: Since when it has kept more than its budget, monotonic seconds; ``None``: it does not.
        order: An open order to free tokens.
        donated_at: When it was asked to lend.
        spared_until: Until when it is left in peace after that.
    """

    __slots__ = (
        "advised",
        "budget",
        "charged",
        "demand",
        "donated_at",
        "lowered_at",
        "missed",
        "missed_until",
        "order",
        "over_since",
        "reserved",
        "share",
        "spared_until",
        "usage",
        "wanted",
    )

    def __init__(self, share: KvShare) -> None:
        self.share = share
        self.usage: KvUsage | None = None
        self.budget = 0
        self.charged = 0
        self.reserved = 0
        self.wanted = 0
        self.missed = 0
        self.missed_until = 0.0
        self.advised: int | None = None
        self.demand: int | None = None
        self.lowered_at = 0
        self.over_since: float | None = None
        self.order: KvOrder | None = None
        self.donated_at: deque[float] = deque(maxlen=MAX_DONATIONS)
        self.spared_until = 0.0

    @property
    def active(self) -> bool:
        """Whether it has work: it says so, or has reserved tokens, waits for some or was refused some a moment ago."""
        return self.reserved + self.wanted + self.missed > 0 or (self.usage is not None and self.usage.active)

    @property
    def resident(self) -> int:
        """Tokens it keeps: what it reported, and no less than what it has reserved."""
        return max(self.reserved, self.usage.resident_tokens if self.usage is not None else 0)

    @property
    def present_demand(self) -> int | None:
        """What it could use now; ``None`` when it does not say."""
        if self.usage is None or self.usage.demand_tokens is None:
            return None
        return max(self.usage.demand_tokens, self.reserved + max(self.wanted, self.missed))

    @property
    def excess(self) -> int:
        """Tokens it keeps beyond its budget."""
        return max(0, self.resident - self.budget)

    @property
    def lendable(self) -> int:
        """Tokens it could do without and stay at its floor: unused ones, and those of its least important work."""
        freeable = self.usage.freeable_tokens if self.usage is not None else 0
        unused = max(0, self.budget - self.resident)
        return max(0, min(self.budget - min(self.share.min_tokens, self.budget), unused + freeable))


class Loan:
    """Tokens that one engine lends another, until the borrower needs them no more.

    Attributes:
        donor: Who lends.
        borrower: Who may use them.
        taken: By how much the donor's budget is lowered.
        given: By how much the borrower's is raised: what the donor was seen to have freed.
    """

    __slots__ = ("borrower", "donor", "given", "taken")

    def __init__(self, *, donor: Lease, borrower: Lease, taken: int) -> None:
        self.donor = donor
        self.borrower = borrower
        self.taken = taken
        self.given = 0


class KvDonation:
    """What one engine was asked to lend.

    Attributes:
        loan: The loan it leads to.
        planned: Tokens asked for.
        limit: What the order leaves it; while it is open it is told no more, even where its share would allow that.
        deadline: When it must have freed them, monotonic seconds.
        outcome: What became of it.
    """

    __slots__ = ("deadline", "limit", "loan", "outcome", "planned")

    def __init__(self, *, loan: Loan, planned: int, limit: int, deadline: float) -> None:
        self.loan = loan
        self.planned = planned
        self.limit = limit
        self.deadline = deadline
        self.outcome = DonationOutcome.OPEN

    @property
    def lease(self) -> Lease:
        """The donor."""
        return self.loan.donor

    @property
    def confirmed(self) -> int:
        """What it was seen to have freed."""
        return self.loan.given


class KvPlan:
    """One engine's request for tokens of others, from the first order to its end.

    Attributes:
        plan_id: Its name.
        device_id: The device.
        requester: The engine that asks.
        asked: The caller's request.
        priority: With which it asks.
        need: Tokens wanted.
        partial: Less is welcome.
        grace_s: Time from an order to its deadline.
        donations: By lease id, in the order of asking.
        rejected: Who was passed over, and why.
        replanned: The shortfall was asked of others once already.
    """

    __slots__ = (
        "asked",
        "device_id",
        "donations",
        "grace_s",
        "need",
        "partial",
        "plan_id",
        "priority",
        "rejected",
        "replanned",
        "requester",
    )

    def __init__(
        self,
        *,
        plan_id: str,
        device_id: DeviceId,
        requester: Lease,
        asked: Asked,
        priority: Priority,
        need: int,
        partial: bool,
        grace_s: float,
    ) -> None:
        self.plan_id = plan_id
        self.device_id = device_id
        self.requester = requester
        self.asked = asked
        self.priority = priority
        self.need = need
        self.partial = partial
        self.grace_s = grace_s
        self.donations: dict[str, KvDonation] = {}
        self.rejected: dict[str, str] = {}
        self.replanned = False

    @property
    def confirmed(self) -> int:
        """What was freed by now."""
        return sum(donation.confirmed for donation in self.donations.values())

    @property
    def settled(self) -> bool:
        """Whether nobody is asked any more."""
        return all(each.outcome is not DonationOutcome.OPEN for each in self.donations.values())

    def delay(self, seconds: float) -> None:
        """Moves every deadline into the future, because the arbiter itself had been away."""
        for donation in self.donations.values():
            donation.deadline += seconds


class KvBook:
    """The KV tokens of one device.

    Attributes:
        total: How many there are.
        bounded: Whether no more than those may be promised.
        engines: The living leases that are KV engines, by fence.
        charged: Σ of what is charged to them.
        floors: Σ of what they were promised at least.
        loans: In the order in which they were made.
        plan: The request for tokens of others that is under way.
        dirty: Something has happened since budgets were computed.
        reservations: Those that are open, by id, oldest first.
        watched: Somebody looks when the oldest of them expires.
    """

    __slots__ = (
        "_blocks",
        "_changed",
        "_inputs",
        "_named",
        "_waiting",
        "bounded",
        "charged",
        "dirty",
        "engines",
        "floors",
        "loans",
        "plan",
        "reservations",
        "total",
        "watched",
    )

    def __init__(self, total: int) -> None:
        self.total = total
        self.bounded = True
        self.engines: dict[int, Lease] = {}
        self.charged = 0
        self.floors = 0
        self.loans: list[Loan] = []
        self.plan: KvPlan | None = None
        self.dirty = False
        self.reservations: dict[str, Reservation] = {}
        self.watched = False
        self._waiting: dict[Ticket, WaitingReservation] = {}
        self._named: dict[tuple[int, str], Reservation | WaitingReservation] = {}
        self._blocks: Counter[int] = Counter()
        self._inputs: dict[int, kv_budget.Engine] = {}
        self._changed: dict[int, Lease] = {}

    @property
    def unit(self) -> int:
        """The tokens that budgets are counted in: whole blocks of every engine.

        Single tokens where blocks differ and no number of tokens that is whole for all of them is small enough.
        """
        unit = math.lcm(*self._blocks)
        return unit if len(self._blocks) == 1 or unit * UNIT_DIVISOR <= self.total else 1

    @staticmethod
    def of(lease: Lease) -> KvState:
        """The state of an engine."""
        assert lease.kv is not None
        return lease.kv

    def open(self, lease: Lease) -> None:
        """Enters a new engine."""
        share = self.of(lease).share
        self.engines[lease.fence] = self._changed[lease.fence] = lease
        self._inputs[lease.fence] = kv_budget.Engine(
            lease_id=lease.lease_id, weight=share.share_weight, floor=share.min_tokens, cap=share.max_tokens
        )
        self._enter(lease, 1)

    def _enter(self, lease: Lease, count: int) -> None:
        share = self.of(lease).share
        self.floors += count * share.min_tokens
        self._blocks[share.block_tokens] += count
        if not self._blocks[share.block_tokens]:
            del self._blocks[share.block_tokens]
        self.dirty = True

    def close(self, lease: Lease) -> list[WaitingReservation]:
        """Strikes out an engine that has ended, with its tokens, reservations and loans; returns who waited for it."""
        del self.engines[lease.fence], self._inputs[lease.fence]
        self._changed.pop(lease.fence, None)
        self._enter(lease, -1)
        self.charged -= self.of(lease).charged
        self.loans = [loan for loan in self.loans if lease not in (loan.donor, loan.borrower)]
        self.reservations = {key: each for key, each in self.reservations.items() if each.lease is not lease}
        gone = [each for each in self._waiting.values() if each.lease is lease]
        for waiting in gone:
            del self._waiting[waiting.ticket]
        self._named = {key: each for key, each in self._named.items() if each.lease is not lease}
        return gone

    def inputs(self) -> list[kv_budget.Engine]:
        """What the shares of the engines follow from, in their order; what was said last counts from here on.

        They are kept, because making thousands of them at every change would cost more than sharing.
        """
        for fence, lease in self._changed.items():
            state, engine = self.of(lease), self._inputs[fence]
            engine.active = state.active
            engine.demand = state.demand = state.present_demand
        self._changed.clear()
        for lease, engine in zip(self.engines.values(), self._inputs.values(), strict=True):
            engine.healthy = not lease.suspect
        return list(self._inputs.values())

    def charge(self, lease: Lease, tokens: int) -> None:
        """Changes what is charged to an engine."""
        state = self.of(lease)
        self.charged += tokens - state.charged
        state.charged = tokens

    def named(self, lease: Lease, request_id: str) -> Reservation | WaitingReservation | None:
        """What an engine calls so: an open reservation, or the first that waits."""
        return self._named.get((lease.fence, request_id))

    def _name(self, held: Reservation | WaitingReservation) -> None:
        if held.request_id:
            self._named[held.lease.fence, held.request_id] = held

    def _unname(self, held: Reservation | WaitingReservation) -> None:
        key = (held.lease.fence, held.request_id)
        if self._named.get(key) is held:
            del self._named[key]

    def fulfil(self, waiting: WaitingReservation, reservation: Reservation) -> None:
        """A reservation that waits becomes an open one."""
        del self._waiting[waiting.ticket]
        self.reservations[reservation.reservation_id] = reservation
        self._name(reservation)
        self._count(reservation.lease, reserved=reservation.tokens, wanted=-waiting.wanted)

    def complete(self, reservation: Reservation) -> None:
        """Returns exactly what was reserved."""
        del self.reservations[reservation.reservation_id]
        self._unname(reservation)
        self._count(reservation.lease, reserved=-reservation.tokens)

    def wait(self, waiting: WaitingReservation) -> None:
        """Enters a reservation that waits."""
        self._waiting[waiting.ticket] = waiting
        if not waiting.again:
            self._name(waiting)
        self._count(waiting.lease, wanted=waiting.wanted)

    def leave(self, ticket: Ticket) -> WaitingReservation | None:
        """Takes a waiting reservation out; the next one that repeats it waits in its place."""
        waiting = self._waiting.pop(ticket, None)
        if waiting is None:
            return None
        self._unname(waiting)
        heir = None
        if waiting.request_id and not waiting.again:
            same = (each for each in self._waiting.values() if each.lease is waiting.lease and each.again)
            heir = next((each for each in same if each.request_id == waiting.request_id), None)
        if heir is not None:
            heir.again = False
            self._name(heir)
        else:
            self._count(waiting.lease, wanted=-waiting.wanted)
        return waiting

    def miss(self, lease: Lease, tokens: int, until: float) -> None:
        """Notes that an engine was refused tokens which it may ask for again; 0: it does not count any more."""
        state = self.of(lease)
        was_active = state.active
        state.missed, state.missed_until = tokens, until
        self.note(lease, was_active=was_active)

    def _count(self, lease: Lease, *, reserved: int = 0, wanted: int = 0) -> None:
        state = self.of(lease)
        was_active = state.active
        state.reserved += reserved
        state.wanted += wanted
        if reserved > 0:
            state.missed = 0
        self.note(lease, was_active=was_active)

    def note(self, lease: Lease, *, was_active: bool) -> bool:
        """Looks whether the needs of an engine have changed so much that budgets should be computed anew."""
        state = self.of(lease)
        self._changed[lease.fence] = lease
        moved = state.active is not was_active or kv_budget.demand_moved(state.demand, state.present_demand)
        self.dirty |= moved
        return moved

    @property
    def taken_places(self) -> int:
        """How many reservations are open or wait."""
        return len(self.reservations) + len(self._waiting)

    @property
    def waiting(self) -> list[WaitingReservation]:
        """The reservations that wait, oldest first."""
        return list(self._waiting.values())

    def lent(self, lease: Lease) -> int:
        """Tokens that an engine lends to others."""
        return sum(loan.taken for loan in self.loans if loan.donor is lease)

    def borrowed(self, lease: Lease) -> int:
        """Tokens that an engine has from others."""
        return sum(loan.given for loan in self.loans if loan.borrower is lease)

    def check(self) -> None:
        """Raises ``AssertionError`` where the book contradicts itself."""
        states = {lease: self.of(lease) for lease in self.engines.values()}
        assert self.charged == sum(state.charged for state in states.values())
        assert self.charged <= self.total or not self.bounded
        assert self.floors == sum(state.share.min_tokens for state in states.values())
        assert self._blocks == Counter(state.share.block_tokens for state in states.values())
        assert all(held.lease in states for held in self._named.values())
        assert list(self.engines) == list(self._inputs)
        for fence, lease in self.engines.items():
            known = self._inputs[fence].active, self._inputs[fence].demand
            assert fence in self._changed or known == (states[lease].active, states[lease].present_demand)
        for lease, state in states.items():
            assert lease.alive
            assert 0 <= state.budget <= state.charged, "nobody is told more than was reserved"
            own = [each for each in self.reservations.values() if each.lease is lease]
            assert state.reserved == sum(each.tokens for each in own)
            assert state.wanted == sum(each.wanted for each in self._waiting.values() if each.lease is lease)
        for loan in self.loans:
            assert loan.donor in states
            assert loan.borrower in states
            assert 0 <= loan.given <= loan.taken
        if self.plan is not None:
            assert all(each.loan in self.loans or each.outcome for each in self.plan.donations.values())
