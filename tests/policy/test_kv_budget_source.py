"""What the KV scheduler this one replaces promised or tested, and where this one differs on purpose.

Each of its eight tests is here by what it asked. It counted tokens of one round; here a budget bounds what is resident.
It gave the shares of idle engines, and what rounding left, to the engine that had registered first, past its cap.
"""

from __future__ import annotations

from arbiter_sidecar.policy import kv_budget, preemption
from arbiter_sidecar.policy.kv_budget import Engine
from arbiter_sidecar.policy.preemption import KV_RULES, Candidate, Requester
from arbiter_sidecar.types import LeaseId, Priority

SOURCE_CAP = 900
"""The source's default cap on one engine in thousandths; ours is 1000."""


def scheduler(*engines: tuple[int, int, bool]) -> list[Engine]:
    """Engines by number, weight and activity."""
    return [Engine(lease_id=LeaseId(f"{name}"), weight=weight, active=active) for name, weight, active in engines]


def test_equal_weights_split_evenly_when_both_are_active() -> None:
    """Holds."""
    budgets = kv_budget.allocate(scheduler((0, 1, True), (1, 1, True)), 1000, engine_cap_permille=SOURCE_CAP)
    assert len(budgets) == 2
    assert sum(budgets) == 1000
    assert all(490 <= budget <= 510 for budget in budgets)


def test_budgets_follow_weights_when_both_are_active() -> None:
    """Holds, exactly instead of within one."""
    assert kv_budget.allocate(scheduler((0, 1, True), (1, 3, True)), 1000, engine_cap_permille=SOURCE_CAP) == [250, 750]


def test_idle_engine_gets_nothing_when_another_is_active() -> None:
    """Holds."""
    assert kv_budget.allocate(scheduler((0, 1, True), (1, 1, False)), 1000)[1] == 0


def test_active_engine_absorbs_the_idle_share_when_no_cap_is_configured() -> None:
    """Holds with our default."""
    assert kv_budget.allocate(scheduler((0, 1, True), (1, 1, False)), 1000)[0] == 1000


def test_active_engine_stops_at_the_cap_when_one_is_configured() -> None:
    """A deliberate difference: the source passed its own cap of 900 here, against what it said about it."""
    engines = scheduler((0, 1, True), (1, 1, False))
    assert kv_budget.allocate(engines, 1000, engine_cap_permille=SOURCE_CAP) == [900, 0]


def test_lone_engine_stops_at_the_cap_when_one_is_configured() -> None:
    """Holds."""
    assert kv_budget.allocate(scheduler((0, 1, True)), 1000, engine_cap_permille=500) == [500]


def test_budgets_are_for_those_who_are_left_when_one_leaves() -> None:
    """Holds."""
    assert kv_budget.allocate(scheduler((0, 1, True)), 1000) == [1000]


def donor(name: int, running: Priority) -> Candidate:
    """An engine that could free twenty blocks."""
    return Candidate(
        lease_id=LeaseId(f"{name}"),
        priority=Priority.NORMAL,
        running_priority=running,
        granted_at=0.0,
        shrinkable=20,
    )


def ask(priority: Priority, *donors: Candidate, need: int = 10) -> list[tuple[str, int]]:
    """Who gives how much to engine 0. The source's priorities 1, 3 and 5 are the lowest, middle and highest of five."""
    requester = Requester(priority=priority, lease_id=LeaseId("0"))
    plan = preemption.plan(donors, need, requester=requester, now=60.0, rules=KV_RULES)
    return [(each.lease_id, each.amount) for each in plan.donations]


def test_donor_runs_the_lowest_priority_when_several_could_give() -> None:
    """Holds."""
    assert ask(Priority.CRITICAL, donor(1, Priority.BACKGROUND), donor(2, Priority.NORMAL)) == [("1", 10)]


def test_nobody_gives_when_all_run_higher_priorities() -> None:
    """Holds."""
    assert ask(Priority.BACKGROUND, donor(1, Priority.CRITICAL)) == []


def test_nobody_gives_when_priorities_are_equal() -> None:
    """Holds: strictly lower."""
    assert ask(Priority.NORMAL, donor(1, Priority.NORMAL)) == []


def test_several_give_when_one_has_too_little() -> None:
    """A deliberate difference: the source found nobody unless one alone could give everything."""
    gifts = ask(Priority.CRITICAL, donor(1, Priority.BACKGROUND), donor(2, Priority.NORMAL), need=30)
    assert gifts == [("1", 20), ("2", 10)]


def test_nobody_is_asked_when_nothing_is_needed() -> None:
    """A deliberate difference: the source named a donor for no blocks at all."""
    assert ask(Priority.CRITICAL, donor(1, Priority.BACKGROUND), need=0) == []


def test_equal_engines_get_equal_budgets_when_a_third_is_idle() -> None:
    """A deliberate difference: the source gave 600 and 300."""
    engines = scheduler((0, 1, True), (1, 1, True), (2, 1, False))
    assert kv_budget.allocate(engines, 900, engine_cap_permille=SOURCE_CAP) == [450, 450, 0]


def test_every_token_is_given_when_shares_are_smaller_than_one() -> None:
    """A deliberate difference: in the source nobody got anything, nor a light one beside a heavy idle one."""
    assert kv_budget.allocate(scheduler((0, 1, True), (1, 1, True), (2, 1, True)), 2) == [1, 1, 0]
    assert kv_budget.allocate(scheduler((0, 1, True), (1, 100, False)), 10, engine_cap_permille=SOURCE_CAP) == [9, 0]


def test_every_engine_has_an_answer_when_there_are_no_tokens() -> None:
    """A deliberate difference: the source's empty answer could not be told from an engine it did not know."""
    assert kv_budget.allocate(scheduler((0, 1, True), (1, 1, True)), 0) == [0, 0]


def test_all_share_when_none_is_active() -> None:
    """Holds: the first request must meet a budget."""
    assert kv_budget.allocate(scheduler((0, 1, False), (1, 3, False)), 1000) == [250, 750]
