"""Who gives when the important one does not fit: the worked numbers, and each reason to pass somebody over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiter_sidecar.policy import preemption
from arbiter_sidecar.policy.preemption import Candidate, Donation, Plan, Reason, Requester, Rules
from arbiter_sidecar.types import LeaseId, Priority

BACKGROUND, LOW, NORMAL, HIGH, CRITICAL = Priority
NOW = 1000.0


def lease(name: str, priority: Priority, shrinkable: int, *, age: float = 100.0, whole: int = 0) -> Candidate:
    """A lease that has been held for ``age`` seconds."""
    return Candidate(
        lease_id=LeaseId(name), priority=priority, granted_at=NOW - age, shrinkable=shrinkable, whole=whole
    )


A = lease("A", BACKGROUND, 20, age=500.0)
B = lease("B", BACKGROUND, 50, age=400.0)
C = lease("C", LOW, 30, age=300.0)
D = lease("D", NORMAL, 100, age=200.0)
E = lease("E", HIGH, 100, age=100.0)
ALL = (A, B, C, D, E)


def ask(
    priority: Priority | None,
    need: int,
    *candidates: Candidate,
    allow_partial: bool = False,
    rules: Rules | None = None,
) -> Plan:
    """A plan for a request of ``priority``; ``None``: the machine itself is short."""
    return preemption.plan(
        candidates,
        need,
        requester=None if priority is None else Requester(priority=priority),
        now=NOW,
        rules=rules or preemption.LEASE_RULES,
        allow_partial=allow_partial,
    )


def gifts(plan: Plan) -> str:
    """The donations in order; whole leases in capitals with an exclamation mark."""
    return " ".join(f"{each.lease_id}{each.amount}{'!' if each.whole else ''}" for each in plan.donations)


def because(plan: Plan, name: str) -> Reason:
    """Why somebody was taken or passed over."""
    return plan.reasons[LeaseId(name)]


@pytest.mark.parametrize(
    ("priority", "need", "allow_partial", "expected", "available"),
    [
        pytest.param(HIGH, 10, False, "A10", 100, id="the-smallest-that-covers"),
        pytest.param(HIGH, 60, False, "B50 A10", 100, id="else-the-largest-first"),
        pytest.param(HIGH, 90, False, "B50 A20 C20", 100, id="then-the-next-tier"),
        pytest.param(HIGH, 110, False, "", 100, id="refused-when-too-little"),
        pytest.param(HIGH, 110, True, "B50 A20 C30", 100, id="all-there-is-when-partial"),
        pytest.param(CRITICAL, 150, False, "B50 A20 C30 D50", 200, id="critical-reaches-normal"),
        pytest.param(NORMAL, 20, False, "A20", 70, id="normal-takes-from-background"),
        pytest.param(NORMAL, 71, False, "", 70, id="normal-does-not-reach-low"),
        pytest.param(LOW, 10, False, "", 0, id="low-reaches-nobody"),
        pytest.param(HIGH, 0, False, "", 100, id="nothing-needed"),
        pytest.param(HIGH, -5, False, "", 100, id="less-than-nothing-needed"),
    ],
)
def test_donors_match_the_worked_numbers_when_asked(
    priority: Priority, need: int, allow_partial: bool, expected: str, available: int
) -> None:
    plan = ask(priority, need, *ALL, allow_partial=allow_partial)
    assert (gifts(plan), plan.available) == (expected, available)
    assert plan.refused == (need > 0 and not expected)


def test_another_gives_when_one_gave_twice_of_late() -> None:
    tired = replace(A, donated_at=(NOW - 9.9, NOW - 3.0))
    plan = ask(HIGH, 10, tired, B, C, D, E)
    assert gifts(plan) == "B10"
    assert because(plan, "A") is Reason.GAVE_OFTEN


def test_donor_may_give_again_when_the_window_has_passed() -> None:
    rested = replace(A, donated_at=(NOW - 10.0, NOW - 3.0))
    assert gifts(ask(HIGH, 10, rested, B)) == "A10"


def test_the_newer_gives_when_two_are_alike() -> None:
    old, new = lease("old", BACKGROUND, 30, age=60.0), lease("new", BACKGROUND, 30, age=40.0)
    assert gifts(ask(HIGH, 30, old, new)) == "new30"
    assert gifts(ask(HIGH, 45, old, new)) == "new30 old15"


def test_the_lower_id_gives_when_two_are_alike_in_all() -> None:
    assert gifts(ask(HIGH, 10, lease("b", LOW, 30), lease("a", LOW, 30))) == "a10"


def test_the_cheaper_to_wake_gives_when_sizes_are_equal() -> None:
    slow = replace(lease("slow", LOW, 30, age=40.0), wake_cost_s=20.0)
    quick = replace(lease("quick", LOW, 30, age=60.0), wake_cost_s=2.0)
    small = replace(lease("small", LOW, 29), wake_cost_s=90.0)
    assert gifts(ask(HIGH, 30, slow, quick)) == "quick30"
    assert gifts(ask(HIGH, 29, slow, quick, small)) == "small29"
    assert gifts(ask(HIGH, 70, slow, quick, small)) == "quick30 slow30 small10"


def test_shortfall_is_asked_of_others_when_a_donor_gives_too_little() -> None:
    first = ask(HIGH, 60, *ALL)
    assert gifts(first) == "B50 A10"
    confirmed = {LeaseId("B"): 30, LeaseId("A"): 10}
    settlement = preemption.settle(first, confirmed)
    assert (settlement.credited, settlement.shortfall) == ({"B": 30, "A": 10}, 20)
    assert settlement.fell_short == {"B"}
    now = [replace(A, shrinkable=10, donated_at=(NOW - 2.0,)), replace(B, shrinkable=20), C, D, E]
    second = preemption.replan(first, confirmed, now, requester=Requester(priority=HIGH), now=NOW)
    assert gifts(second) == "A10 C10"
    assert because(second, "B") is Reason.FELL_SHORT


def test_shortfall_is_refused_when_the_others_have_too_little() -> None:
    first = ask(HIGH, 90, *ALL)
    now = [replace(A, shrinkable=0), replace(B, shrinkable=0), replace(C, shrinkable=10)]
    confirmed = {LeaseId("A"): 20, LeaseId("C"): 20}
    second = preemption.replan(first, confirmed, now, requester=Requester(priority=HIGH), now=NOW)
    assert (second.need, second.available, second.refused) == (50, 10, True)
    partial = preemption.replan(first, confirmed, now, requester=Requester(priority=HIGH), now=NOW, allow_partial=True)
    assert gifts(partial) == "C10"


def test_nothing_is_planned_anew_when_all_was_given() -> None:
    first = ask(HIGH, 60, *ALL)
    second = preemption.replan(
        first, {LeaseId("B"): 50, LeaseId("A"): 10}, ALL, requester=Requester(priority=HIGH), now=NOW
    )
    assert (second.need, second.donations, second.refused) == (0, (), False)


def test_credit_is_what_was_asked_for_when_a_donor_frees_more() -> None:
    first = ask(HIGH, 60, *ALL)
    settlement = preemption.settle(first, {LeaseId("B"): 80, LeaseId("A"): -5, LeaseId("Z"): 70})
    assert settlement.credited == {"B": 50, "A": 0}
    assert (settlement.shortfall, settlement.fell_short) == (10, frozenset({LeaseId("A")}))


REQUESTER = Requester(priority=CRITICAL, lease_id=LeaseId("mine"))


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        pytest.param(lease("mine", BACKGROUND, 50), Reason.OWN_LEASE, id="own"),
        pytest.param(lease("x", HIGH, 50), Reason.PRIORITY_GAP, id="one-tier-below"),
        pytest.param(lease("x", CRITICAL, 50), Reason.PRIORITY_GAP, id="equal"),
        pytest.param(replace(lease("x", LOW, 50), healthy=False), Reason.UNHEALTHY, id="unhealthy"),
        pytest.param(lease("x", LOW, 0), Reason.NOTHING_TO_GIVE, id="at-its-floor"),
        pytest.param(lease("x", LOW, -3), Reason.NOTHING_TO_GIVE, id="below-its-floor"),
        pytest.param(lease("x", LOW, 50, age=0.999), Reason.HELD_BRIEFLY, id="just-granted"),
        pytest.param(lease("x", LOW, 0, whole=50, age=29.9), Reason.HELD_BRIEFLY, id="too-new-to-end"),
        pytest.param(replace(lease("x", LOW, 50), donated_at=(NOW - 1, NOW)), Reason.GAVE_OFTEN, id="gave-twice"),
        pytest.param(replace(lease("x", LOW, 50), spared_until=NOW + 0.1), Reason.COOLING_DOWN, id="gave-just-now"),
    ],
)
def test_candidate_is_passed_over_with_its_reason_when_it_may_not_be_taken(
    candidate: Candidate, reason: Reason
) -> None:
    plan = preemption.plan([candidate, B], 40, requester=REQUESTER, now=NOW)
    assert plan.reasons == {candidate.lease_id: reason, "B": Reason.SHRINKS}
    assert gifts(plan) == "B40"


@pytest.mark.parametrize(
    "candidate",
    [
        pytest.param(lease("x", LOW, 50, age=1.0), id="held-for-a-second"),
        pytest.param(lease("x", LOW, 0, whole=50, age=30.0), id="held-for-half-a-minute"),
        pytest.param(replace(lease("x", LOW, 50), donated_at=(NOW,)), id="gave-once"),
        pytest.param(replace(lease("x", LOW, 50), spared_until=NOW), id="cooled-down"),
        pytest.param(replace(lease("x", NORMAL, 50), preemptible=False), id="protection-does-not-count-below-high"),
    ],
)
def test_candidate_is_taken_when_it_just_may_be(candidate: Candidate) -> None:
    assert preemption.plan([candidate], 40, requester=REQUESTER, now=NOW).planned >= 40


def test_reasons_say_who_was_not_needed_when_others_suffice() -> None:
    plan = ask(HIGH, 10, *ALL)
    assert plan.reasons == {
        "A": Reason.SHRINKS,
        "B": Reason.NOT_NEEDED,
        "C": Reason.NOT_NEEDED,
        "D": Reason.PRIORITY_GAP,
        "E": Reason.PRIORITY_GAP,
    }


def test_reasons_say_that_nobody_was_needed_when_nothing_is() -> None:
    assert because(ask(HIGH, 0, *ALL), "A") is Reason.NOT_NEEDED


def test_reasons_say_that_it_is_too_little_when_the_plan_is_refused() -> None:
    plan = ask(HIGH, 110, *ALL)
    assert [because(plan, name) for name in "ABC"] == [Reason.TOO_LITTLE] * 3


def test_protection_counts_when_a_high_lease_is_within_reach() -> None:
    protected = replace(lease("x", HIGH, 50), preemptible=False)
    close = Rules(gap=1)
    assert because(ask(CRITICAL, 10, protected, rules=close), "x") is Reason.NOT_PREEMPTIBLE
    assert gifts(ask(CRITICAL, 10, replace(protected, preemptible=True), rules=close)) == "x10"


def test_running_work_decides_when_the_donor_is_a_kv_engine() -> None:
    """An important engine that runs unimportant work lends; an unimportant one that runs important work does not."""
    serving = replace(lease("serving", BACKGROUND, 50), running_priority=HIGH)
    batch = replace(lease("batch", HIGH, 50), running_priority=LOW)
    plan = ask(NORMAL, 20, serving, batch, rules=preemption.KV_RULES)
    assert gifts(plan) == "batch20"
    assert because(plan, "serving") is Reason.PRIORITY_GAP
    protected = replace(batch, preemptible=False)
    assert because(ask(NORMAL, 20, protected, rules=preemption.KV_RULES), "batch") is Reason.NOT_PREEMPTIBLE


def test_kv_donors_never_end_when_tokens_are_missing() -> None:
    plan = ask(CRITICAL, 20, lease("x", LOW, 10, whole=500), rules=preemption.KV_RULES)
    assert (plan.refused, plan.available) == (True, 10)
    assert because(ask(CRITICAL, 20, lease("x", LOW, 0, whole=9), rules=preemption.KV_RULES), "x") is (
        Reason.NOTHING_TO_GIVE
    )


def test_victim_cannot_take_back_when_it_asks_in_its_turn() -> None:
    for gap in (1, 2):
        rules = Rules(gap=gap)
        for taker in Priority:
            for victim in Priority:
                if ask(taker, 5, lease("x", victim, 10), rules=rules).donations:
                    assert not ask(victim, 5, lease("y", taker, 10), rules=rules).donations


def test_donation_says_what_it_is_when_printed() -> None:
    assert ask(HIGH, 10, A).donations == (Donation(LeaseId("A"), 10, False),)
