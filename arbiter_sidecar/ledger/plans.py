"""The book of preemptions: who was asked for what, what has been confirmed free, and for whom it is kept.

Bytes are confirmed by the books of the device, never by what a donor says: what was charged or measured there when it
was asked, less what is charged or measured now.
"""

from __future__ import annotations

from collections import OrderedDict

from arbiter_sidecar.errors import ArbiterError
from arbiter_sidecar.ledger.kv import KvPlan
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.waiting import Waiter
from arbiter_sidecar.requests import PreemptionRequest
from arbiter_sidecar.types import DeviceId, DonationOutcome, Priority, ReclaimLevel, Ticket

#: Requests to take memory from others that wait, or are remembered by name.
MAX_ASKED = 1_000
#: How long an answer is remembered: longer than any sensible retry.
ASKED_LIFE_S = 600.0


class Donation:
    """What one lease is asked to give.

    Attributes:
        reclaim_id: What the holder calls the order.
        lease: The donor, alive or ended.
        planned_bytes: What it is asked for.
        baseline_bytes: What was charged or measured for it when it was asked; of one that is wanted whole no more than
            what it is asked for, because what it holds beyond that is due anyway.
        limit_bytes: What the order leaves it; it may be told still less meanwhile, which its answer is not about.
        confirmed_bytes: What the books show to be free since; never falls.
        whole: The lease as a whole is wanted; at the deadline it is revoked.
        level: Urgency.
        acknowledged: The holder has answered.
        asked_at: When it was asked.
        deadline: When it must have given, monotonic seconds.
        outcome: What became of it.
    """

    __slots__ = (
        "acknowledged",
        "asked_at",
        "baseline_bytes",
        "confirmed_bytes",
        "deadline",
        "lease",
        "level",
        "limit_bytes",
        "outcome",
        "planned_bytes",
        "reclaim_id",
        "whole",
    )

    def __init__(
        self, *, reclaim_id: str, lease: Lease, planned_bytes: int, whole: bool, now: float, grace_s: float
    ) -> None:
        self.reclaim_id = reclaim_id
        self.lease = lease
        self.planned_bytes = planned_bytes
        self.baseline_bytes = planned_bytes if whole else lease.accounted_bytes
        self.limit_bytes = lease.limit_bytes
        self.confirmed_bytes = 0
        self.whole = whole
        self.level = ReclaimLevel.SOFT
        self.acknowledged = False
        self.asked_at = now
        self.deadline = now + grace_s
        self.outcome = DonationOutcome.OPEN

    @property
    def short_bytes(self) -> int:
        """What is still missing."""
        return self.planned_bytes - self.confirmed_bytes

    def extend(self, *, reclaim_id: str, more_bytes: int, whole: bool, now: float, grace_s: float) -> None:
        """Asks a donor that has given for more, under a new order."""
        self.reclaim_id = reclaim_id
        self.planned_bytes += more_bytes
        self.whole = whole
        self.level = ReclaimLevel.SOFT
        self.acknowledged = False
        self.asked_at = now
        self.deadline = now + grace_s
        self.outcome = DonationOutcome.OPEN

    def delay(self, seconds: float) -> None:
        """Moves its times into the future, because the arbiter itself had been away."""
        self.asked_at += seconds
        self.deadline += seconds

    def observe(self) -> int:
        """Takes in what the books show now; returns the bytes confirmed since the last look."""
        freed = min(self.planned_bytes, max(0, self.baseline_bytes - self.lease.accounted_bytes))
        gained = max(0, freed - self.confirmed_bytes)
        self.confirmed_bytes += gained
        return gained


class Asked:
    """One caller's request to have memory taken from others, from its arrival until nobody will ask for it again.

    Attributes:
        number: Its place in the order of arrival: the ticket of its first caller.
        request: What is wanted.
        device_id: The device.
        priority: With which it asks.
        deadline: When it gives up waiting for its turn, monotonic seconds.
        tickets: The callers that wait for its end.
        plan: The preemption of memory or of tokens it led to; ``None`` before its turn.
        error: Why it failed; ``None`` when it did not, or has not ended.
        closed_at: When it ended; ``None`` before.
    """

    __slots__ = ("closed_at", "deadline", "device_id", "error", "number", "plan", "priority", "request", "tickets")

    def __init__(
        self, *, number: int, request: PreemptionRequest, device_id: DeviceId, priority: Priority, deadline: float
    ) -> None:
        self.number = number
        self.request = request
        self.device_id = device_id
        self.priority = priority
        self.deadline = deadline
        self.tickets: list[Ticket] = []
        self.plan: Plan | KvPlan | None = None
        self.error: ArbiterError | None = None
        self.closed_at: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Who asks, and what it calls its request."""
        return self.request.lease_id, self.request.request_id


class AskedLine:
    """Requests to have memory taken from others: those that wait for their turn, and those that a retry may name."""

    def __init__(self) -> None:
        self.waiting: dict[int, Asked] = {}
        self._named: OrderedDict[tuple[str, str], Asked] = OrderedDict()

    def remember(self, asked: Asked) -> None:
        """Lets a request be found by its name; of too many the oldest is forgotten."""
        if asked.request.request_id:
            self._named[asked.key] = asked
            if len(self._named) > MAX_ASKED:
                self._named.popitem(last=False)

    def named(self, request: PreemptionRequest, now: float) -> Asked | None:
        """What an earlier call of this name has led to, unless that is too long ago."""
        known = self._named.get((request.lease_id, request.request_id)) if request.request_id else None
        if known is None or (known.closed_at is not None and now - known.closed_at > ASKED_LIFE_S):
            return None
        return known

    def first(self, device_id: DeviceId, *, tokens: bool) -> Asked | None:
        """Whose turn it is on a device, for memory or for tokens: the most important, then the oldest."""
        here = (
            asked
            for asked in self.waiting.values()
            if asked.device_id == device_id and bool(asked.request.need_tokens) is tokens
        )
        return min(here, key=lambda asked: (-asked.priority, asked.number), default=None)


class Plan:
    """One preemption from the first notice to its end.

    Attributes:
        plan_id: Its name.
        device_id: The device.
        requester: The lease that asks; ``None`` for a waiting request, a person, or the machine itself.
        waiter: The waiting request it is for; ``None`` for others.
        asked: The caller's request; ``None`` where the arbiter itself preempts.
        priority: With which it asks.
        need_bytes: What is needed.
        partial: Less is welcome.
        machine: The machine itself is short: nobody asked.
        grace_s: Time from a notice to its deadline.
        orders: How many orders to give were sent.
        donations: By lease id, in the order of asking.
        rejected: Who was passed over, and why.
        deadline: When it ends with what there is.
        replanned: The shortfall was asked of others once already.
    """

    def __init__(
        self,
        *,
        plan_id: str,
        device_id: DeviceId,
        requester: Lease | None,
        waiter: Waiter | None,
        priority: Priority,
        need_bytes: int,
        partial: bool,
        machine: bool,
        grace_s: float,
        deadline: float,
    ) -> None:
        self.plan_id = plan_id
        self.device_id = device_id
        self.requester = requester
        self.waiter = waiter
        self.asked: Asked | None = None
        self.priority = priority
        self.need_bytes = need_bytes
        self.partial = partial
        self.machine = machine
        self.grace_s = grace_s
        self.deadline = deadline
        self.orders = 0
        self.donations: dict[str, Donation] = {}
        self.rejected: dict[str, str] = {}
        self.replanned = False

    @property
    def confirmed_bytes(self) -> int:
        """What is free by now."""
        return sum(donation.confirmed_bytes for donation in self.donations.values())

    @property
    def short_bytes(self) -> int:
        """What is still missing."""
        return max(0, self.need_bytes - self.confirmed_bytes)

    @property
    def whole(self) -> bool:
        """Whether only whole leases help: everybody is at the minimum already."""
        return self.machine or self.waiter is not None

    @property
    def spent(self) -> bool:
        """Whether nothing more is to come: nobody is asked any more, and what the ended held is gone."""
        return all(
            each.outcome is not DonationOutcome.OPEN and (each.lease.alive or each.short_bytes == 0)
            for each in self.donations.values()
        )

    def delay(self, seconds: float) -> None:
        """Moves every deadline into the future, because the arbiter itself had been away."""
        self.deadline += seconds
        for donation in self.donations.values():
            donation.delay(seconds)
