"""Who has to give when the important one does not fit: as little as possible, from the least important first.

Donors shrink before any of them ends: what they can shed above their floors is taken in exact amounts, and only when
all of it together is not enough are whole leases taken as well, no more of them than needed. A plan says of every
candidate why it was taken or passed over. It is only a plan: nothing is free before it is confirmed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from arbiter_sidecar.types import LeaseId, Priority

#: Tiers between requester and donor. Neighbours share by quality; taking is for what is clearly more important.
LEASE_GAP = 2
#: KV tokens come back with the borrower's last request, so any lower work may lend them.
KV_GAP = 1
#: Seconds a lease must have been held before it shrinks: long enough to have applied its first directive.
SHRINK_HOLD_S = 1.0
#: Seconds it must have been held before it is taken whole: loading a model took it about as long.
REVOKE_HOLD_S = 30.0
#: So many donations …
DONATION_LIMIT = 2
#: … in so many seconds are as much disturbance as one holder has to bear.
DONATION_WINDOW_S = 10.0
#: Seconds for which a donor is spared when a plan has closed: as long as a notice runs by default.
COOLDOWN_S = 2.0
#: From here on a lease may refuse to be a donor; below, everything may be taken for something more important.
PROTECTED_FROM = Priority.HIGH


class Reason(StrEnum):
    """Why a candidate was taken or passed over."""

    #: It gives a part.
    SHRINKS = "shrinks"
    #: It ends and gives everything.
    REVOKED = "revoked"
    #: Others give enough.
    NOT_NEEDED = "not_needed"
    #: The plan was refused: all that may be taken is less than what is needed.
    TOO_LITTLE = "too_little"
    #: It is the requester's own.
    OWN_LEASE = "own_lease"
    #: It is too important for this requester.
    PRIORITY_GAP = "priority_gap"
    #: It asked not to be preempted, and counts enough for that.
    NOT_PREEMPTIBLE = "not_preemptible"
    #: Its holder cannot be relied on to give anything.
    UNHEALTHY = "unhealthy"
    #: It gave too little in this very plan.
    FELL_SHORT = "fell_short"
    #: It has nothing above its floor and cannot be taken whole.
    NOTHING_TO_GIVE = "nothing_to_give"
    #: It has not been held long enough.
    HELD_BRIEFLY = "held_briefly"
    #: It gave often of late.
    GAVE_OFTEN = "gave_often"
    #: It gave a moment ago.
    COOLING_DOWN = "cooling_down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A lease that might give. Amounts are bytes or KV tokens, the same for all of a plan.

    Attributes:
        lease_id: The lease.
        priority: Its priority.
        running_priority: Lowest priority of the work a KV engine runs; it decides in place of ``priority`` who may take
            from it. ``None``: not a KV engine.
        granted_at: Since when it is held, monotonic seconds.
        shrinkable: What it can shed and stay above its floor.
        whole: What ends up free when it is taken whole; 0 where that is no choice, as with KV tokens.
        preemptible: Whether it may be preempted; ``False`` counts only at HIGH and above.
        healthy: Whether its holder can be relied on to give.
        donated_at: When it was asked to give, monotonic seconds, newest last; older than the window may be left out.
        spared_until: End of its cooldown, monotonic seconds.
        wake_cost_s: Measured seconds it needs to come back after giving; among equals the cheapest gives.
    """

    lease_id: LeaseId
    priority: Priority
    granted_at: float
    shrinkable: int
    whole: int = 0
    running_priority: Priority | None = None
    preemptible: bool = True
    healthy: bool = True
    donated_at: tuple[float, ...] = ()
    spared_until: float = 0.0
    wake_cost_s: float = 0.0

    @property
    def tier(self) -> Priority:
        """What a requester has to be above of."""
        return self.priority if self.running_priority is None else self.running_priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Requester:
    """For whom it is taken.

    Attributes:
        priority: With which it asks.
        lease_id: Its lease; ``None`` for a request that waits and for a person.
    """

    priority: Priority
    lease_id: LeaseId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a plan respects; the constants of this module say why.

    Attributes:
        gap: Tiers that the requester must be above a donor, at least 1.
        shrink_hold_s: Seconds held before a lease shrinks.
        revoke_hold_s: Seconds held before a lease is taken whole.
        donation_limit: Donations in the window, at least 1.
        donation_window_s: Length of the window, seconds.
        revoke: Whether leases may be taken whole at all.
    """

    gap: int = LEASE_GAP
    shrink_hold_s: float = SHRINK_HOLD_S
    revoke_hold_s: float = REVOKE_HOLD_S
    donation_limit: int = DONATION_LIMIT
    donation_window_s: float = DONATION_WINDOW_S
    revoke: bool = True


#: Between leases.
LEASE_RULES = Rules()
#: Between KV engines, which lend tokens and never end for it.
KV_RULES = Rules(gap=KV_GAP, revoke=False)


@dataclass(frozen=True, slots=True)
class Donation:
    """What one lease is to give; ``whole``: all it has, the lease ends."""

    lease_id: LeaseId
    amount: int
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who is to give what.

    Attributes:
        need: What was asked for.
        available: What could be taken at most.
        donations: In the order in which they were chosen: shrinking first, then whole leases. Empty when refused.
        reasons: Of every candidate, taken or not, in the order given.
    """

    need: int
    available: int
    donations: tuple[Donation, ...]
    reasons: Mapping[LeaseId, Reason]

    @property
    def planned(self) -> int:
        """What the donations come to; more than the need only where whole leases are taken."""
        return sum(donation.amount for donation in self.donations)

    @property
    def refused(self) -> bool:
        """Whether nothing is taken although something is needed."""
        return self.need > 0 and not self.donations


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What a plan came to.

    Attributes:
        credited: What each donor's confirmation counts for the requester: never more than it was asked for.
        shortfall: What is still missing of the need.
        fell_short: Donors that gave less than they were asked for.
    """

    credited: Mapping[LeaseId, int]
    shortfall: int
    fell_short: frozenset[LeaseId]


@dataclass(frozen=True, slots=True)
class _Offer:
    """An amount that a candidate could give, in the order in which equals are chosen."""

    tier: Priority
    amount: int
    candidate: Candidate

    def place(self) -> tuple[int, int, float, float, str]:
        """Lower tiers first, in a tier the larger; among equals the cheaper to wake, the newer, the lower id."""
        each = self.candidate
        return self.tier, -self.amount, each.wake_cost_s, -each.granted_at, each.lease_id


def plan(
    candidates: Sequence[Candidate],
    need: int,
    *,
    requester: Requester | None,
    now: float,
    rules: Rules = LEASE_RULES,
    allow_partial: bool = False,
    fell_short: frozenset[LeaseId] = frozenset(),
) -> Plan:
    """Chooses donors for ``need``. Deterministic, independent of the order of ``candidates``; O(n log n).

    Lower tiers give first. Within a tier the smallest that covers the rest gives exactly that; when none does, the
    largest gives all it can, and so on. Among equals: the cheaper to wake, then the newer, then the lower id.

    Whole leases are taken only when everything that can shrink is not enough, chosen in the same way by what they add
    to that; one that turns out not to be needed is left alone, and so is what then need not shrink.

    Args:
        candidates: The leases of one device.
        need: Bytes or tokens; nothing is planned for 0 or less.
        requester: For whom; ``None`` when the machine itself is short. Then nobody is too important, too new, silent,
            protected or spared: the alternative is that everybody runs out of memory.
        now: Monotonic seconds.
        rules: What to respect.
        allow_partial: Take what there is when it is not enough; otherwise nothing is taken.
        fell_short: Leases that have had their chance.
    """
    obstacles = {each.lease_id: _obstacle(each, requester, now, rules, fell_short) for each in candidates}
    willing = [each for each in candidates if obstacles[each.lease_id] is None]
    shrinkable = {each.lease_id: _shrinkable(each, requester, now, rules) for each in willing}
    whole = {each.lease_id: _whole(each, requester, now, rules) for each in willing}
    available = sum(max(shrinkable[each.lease_id], whole[each.lease_id]) for each in willing)
    donations: list[Donation] = []
    if available >= need or allow_partial:
        ended = _ending(willing, shrinkable, whole, need)
        donations = [*_shrinking(willing, shrinkable, ended, need), *ended]
    untaken = Reason.NOT_NEEDED if need <= 0 or donations else Reason.TOO_LITTLE
    reasons = {lease_id: obstacle or untaken for lease_id, obstacle in obstacles.items()}
    reasons.update({each.lease_id: Reason.REVOKED if each.whole else Reason.SHRINKS for each in donations})
    return Plan(need=need, available=available, donations=tuple(donations), reasons=reasons)


def settle(plan: Plan, confirmed: Mapping[LeaseId, int]) -> Settlement:
    """What a plan came to, by what was confirmed free for each of its donors.

    What somebody frees beyond what it was asked for is not the requester's, so that it cannot be counted twice.
    """
    credited = {each.lease_id: max(0, min(each.amount, confirmed.get(each.lease_id, 0))) for each in plan.donations}
    return Settlement(
        credited=credited,
        shortfall=max(0, plan.need - sum(credited.values())),
        fell_short=frozenset(each.lease_id for each in plan.donations if credited[each.lease_id] < each.amount),
    )


def replan(
    previous: Plan,
    confirmed: Mapping[LeaseId, int],
    candidates: Sequence[Candidate],
    *,
    requester: Requester | None,
    now: float,
    rules: Rules = LEASE_RULES,
    allow_partial: bool = False,
) -> Plan:
    """Plans the shortfall of a plan whose time is up, without those that fell short.

    Args:
        previous: The plan.
        confirmed: What was confirmed free for each of its donors.
        candidates: The leases as they are now: a donor that gave comes with what it could still give.
        requester: As before.
        now: Monotonic seconds.
        rules: As before.
        allow_partial: As before.
    """
    settlement = settle(previous, confirmed)
    return plan(
        candidates,
        settlement.shortfall,
        requester=requester,
        now=now,
        rules=rules,
        allow_partial=allow_partial,
        fell_short=settlement.fell_short,
    )


def _obstacle(
    candidate: Candidate, requester: Requester | None, now: float, rules: Rules, fell_short: frozenset[LeaseId]
) -> Reason | None:
    """The first reason to pass a candidate over, the lasting ones before those of the moment."""
    if requester is not None:
        right = _right(candidate, requester, rules)
        if right is not None:
            return right
    if not candidate.healthy and requester is not None:
        return Reason.UNHEALTHY
    if candidate.lease_id in fell_short:
        return Reason.FELL_SHORT
    if candidate.shrinkable <= 0 and (candidate.whole <= 0 or not rules.revoke):
        return Reason.NOTHING_TO_GIVE
    if requester is None:
        return None
    if not _shrinkable(candidate, requester, now, rules) and not _whole(candidate, requester, now, rules):
        return Reason.HELD_BRIEFLY
    if sum(now - moment < rules.donation_window_s for moment in candidate.donated_at) >= rules.donation_limit:
        return Reason.GAVE_OFTEN
    return Reason.COOLING_DOWN if now < candidate.spared_until else None


def _right(candidate: Candidate, requester: Requester, rules: Rules) -> Reason | None:
    """Why this requester may never take from the candidate."""
    if candidate.lease_id == requester.lease_id:
        return Reason.OWN_LEASE
    if requester.priority - candidate.tier < rules.gap:
        return Reason.PRIORITY_GAP
    if not candidate.preemptible and candidate.priority >= PROTECTED_FROM:
        return Reason.NOT_PREEMPTIBLE
    return None


def _shrinkable(candidate: Candidate, requester: Requester | None, now: float, rules: Rules) -> int:
    held = requester is None or now - candidate.granted_at >= rules.shrink_hold_s
    return max(0, candidate.shrinkable) if held else 0


def _whole(candidate: Candidate, requester: Requester | None, now: float, rules: Rules) -> int:
    held = requester is None or now - candidate.granted_at >= rules.revoke_hold_s
    return max(0, candidate.whole) if held and rules.revoke else 0


def _choose(offers: Sequence[_Offer], rest: int) -> list[tuple[_Offer, int]]:
    """Who gives what until ``rest``, above 0, is covered or all have given; only the last gives less than it offers."""
    chosen: list[tuple[_Offer, int]] = []
    ordered = sorted((offer for offer in offers if offer.amount > 0), key=_Offer.place)
    for _, members in groupby(ordered, key=lambda offer: offer.tier):
        tier = list(members)
        falling = [-offer.amount for offer in tier]
        for index, offer in enumerate(tier):
            if offer.amount >= rest:
                # The smallest amount that covers is the last of those; the preferred among its equals is the first.
                smallest = falling[bisect_right(falling, -rest, lo=index) - 1]
                chosen.append((tier[bisect_left(falling, smallest, lo=index)], rest))
                return chosen
            chosen.append((offer, offer.amount))
            rest -= offer.amount
    return chosen


def _ending(
    willing: Sequence[Candidate], shrinkable: Mapping[LeaseId, int], whole: Mapping[LeaseId, int], need: int
) -> list[Donation]:
    """The leases that must be taken whole because shrinking alone does not cover the need; none of them needless."""
    shed = sum(shrinkable.values())
    if need <= shed:
        return []
    # Each counts for what it adds to its own shrinking, which is lost as a source when it ends.
    offers = [_Offer(each.tier, whole[each.lease_id] - shrinkable[each.lease_id], each) for each in willing]
    taken = [offer for offer, _ in _choose(offers, need - shed)]
    spare = shed + sum(offer.amount for offer in taken) - need
    kept: list[_Offer] = []
    # A large lease of a higher tier can make lower ones needless that were not enough without it.
    for offer in reversed(taken):
        if offer.amount <= spare:
            spare -= offer.amount
        else:
            kept.append(offer)
    return [Donation(offer.candidate.lease_id, whole[offer.candidate.lease_id], True) for offer in reversed(kept)]


def _shrinking(
    willing: Sequence[Candidate], shrinkable: Mapping[LeaseId, int], ended: Sequence[Donation], need: int
) -> list[Donation]:
    """Who sheds what, so that together with the leases taken whole it is exactly the need, or all there is."""
    rest = need - sum(donation.amount for donation in ended)
    if rest <= 0:
        return []
    gone = {donation.lease_id for donation in ended}
    offers = [_Offer(each.tier, shrinkable[each.lease_id], each) for each in willing if each.lease_id not in gone]
    return [Donation(offer.candidate.lease_id, amount) for offer, amount in _choose(offers, rest)]
