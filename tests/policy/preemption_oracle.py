"""Who must give, found the slow way, and what must hold of every plan; written from the definition alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from arbiter_sidecar.policy import preemption
from arbiter_sidecar.policy.preemption import Candidate, Plan, Requester, Rules
from arbiter_sidecar.types import LeaseId


def may_give(each: Candidate, requester: Requester | None, now: float, rules: Rules) -> tuple[int, int]:
    """What a candidate may be made to shed, and what it frees when it is taken whole."""
    shed, whole = each.shrinkable, each.whole if rules.revoke else 0
    if requester is None:
        # The machine itself is short: the silent go as well.
        return shed, whole
    if not each.healthy or each.lease_id == requester.lease_id:
        return 0, 0
    tier = each.running_priority or each.priority
    recent = [moment for moment in each.donated_at if moment > now - rules.donation_window_s]
    if tier > requester.priority - rules.gap or len(recent) >= rules.donation_limit or each.spared_until > now:
        return 0, 0
    if not each.preemptible and each.priority.name in ("HIGH", "CRITICAL"):
        return 0, 0
    held = now - each.granted_at
    return (0 if held < rules.shrink_hold_s else shed), (0 if held < rules.revoke_hold_s else whole)


def shed_in_turn(candidates: Iterable[Candidate], sheds: Mapping[LeaseId, int], need: int) -> list[tuple[str, int]]:
    """Exact amounts: from the lowest tier the smallest that covers the rest, else the largest."""
    left = [each for each in candidates if sheds[each.lease_id] > 0]
    given: list[tuple[str, int]] = []
    while left and need > 0:
        lowest = min(each.tier for each in left)
        tier = [each for each in left if each.tier == lowest]
        covering = [each for each in tier if sheds[each.lease_id] >= need]
        size = (
            min(sheds[each.lease_id] for each in covering) if covering else max(sheds[each.lease_id] for each in tier)
        )
        equals = [each for each in tier if sheds[each.lease_id] == size]
        donor = min(equals, key=lambda each: (each.wake_cost_s, -each.granted_at, each.lease_id))
        amount = min(need, size)
        given.append((donor.lease_id, amount))
        left.remove(donor)
        need -= amount
    return given


def check(
    plan: Plan,
    candidates: Sequence[Candidate],
    requester: Requester | None,
    now: float,
    rules: Rules,
    *,
    allow_partial: bool,
) -> None:
    """Raises ``AssertionError`` where a plan is not what the definition says."""
    able = {each.lease_id: may_give(each, requester, now, rules) for each in candidates}
    available = sum(max(pair) for pair in able.values())
    assert plan.available == available
    assert set(plan.reasons) == set(able)
    taken = {each.lease_id: each for each in plan.donations}
    assert len(taken) == len(plan.donations)
    for lease_id, reason in plan.reasons.items():
        assert (lease_id in taken) == (reason in (preemption.Reason.SHRINKS, preemption.Reason.REVOKED))
        assert (max(able[lease_id]) > 0) == (
            lease_id in taken or reason in (preemption.Reason.NOT_NEEDED, preemption.Reason.TOO_LITTLE)
        )
    for donation in plan.donations:
        shed, whole = able[donation.lease_id]
        assert donation.amount == whole if donation.whole else 0 < donation.amount <= shed
    if plan.need <= 0 or (available < plan.need and not allow_partial):
        assert not plan.donations
        assert plan.refused == (plan.need > 0)
        return
    _check_amounts(plan, candidates, able)


def _check_amounts(plan: Plan, candidates: Sequence[Candidate], able: Mapping[LeaseId, tuple[int, int]]) -> None:
    sheds = {lease_id: pair[0] for lease_id, pair in able.items()}
    ended = {each.lease_id for each in plan.donations if each.whole}
    freed = sum(each.amount for each in plan.donations if each.whole)
    staying = [each for each in candidates if each.lease_id not in ended]
    shrinking = [(each.lease_id, each.amount) for each in plan.donations if not each.whole]
    assert shrinking == shed_in_turn(staying, sheds, plan.need - freed)
    if plan.available < plan.need:
        assert plan.planned == plan.available
        return
    assert plan.planned >= plan.need
    if not ended or shrinking:
        assert plan.planned == plan.need
    _check_ended(plan.need, candidates, able, ended)


def _check_ended(
    need: int, candidates: Sequence[Candidate], able: Mapping[LeaseId, tuple[int, int]], ended: set[LeaseId]
) -> None:
    """Nobody ends needlessly, and no tier is touched that those below it could have spared, by trying every choice."""

    def covers(choice: Iterable[LeaseId]) -> bool:
        gone = set(choice)
        return sum(pair[1] if lease_id in gone else pair[0] for lease_id, pair in able.items()) >= need

    assert covers(ended)
    assert not any(covers(ended - {lease_id}) for lease_id in ended)
    if not ended:
        return
    tiers = {each.lease_id: each.tier for each in candidates}
    highest = max(tiers[lease_id] for lease_id in ended)
    below = [lease_id for lease_id, pair in able.items() if tiers[lease_id] < highest and pair[1] > pair[0]]
    for count in range(len(below) + 1):
        assert not any(covers(choice) for choice in combinations(below, count))
