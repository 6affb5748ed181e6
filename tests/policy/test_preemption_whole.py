"""Taking whole leases, only when shrinking is not enough and none needlessly; and a machine that is short by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiter_sidecar.policy.preemption import Candidate, Reason, Rules
from arbiter_sidecar.types import Priority

from .test_preemption import NOW, ask, because, gifts, lease

BACKGROUND, LOW, NORMAL, HIGH, CRITICAL = Priority

SOLID = (
    lease("A", BACKGROUND, 0, whole=20, age=500.0),
    lease("B", BACKGROUND, 0, whole=50, age=400.0),
    lease("C", LOW, 0, whole=30, age=300.0),
    lease("D", NORMAL, 0, whole=100, age=200.0),
    lease("E", HIGH, 0, whole=100, age=100.0),
)
"""The leases of the worked numbers, none of which can shrink."""

HALF = lease("half", BACKGROUND, 30, whole=60)
QUARTER = lease("quarter", LOW, 10, whole=40)


@pytest.mark.parametrize(
    ("priority", "need", "allow_partial", "expected"),
    [
        pytest.param(HIGH, 10, False, "A20!", id="the-smallest-that-covers"),
        pytest.param(HIGH, 60, False, "B50! A20!", id="both-of-the-tier"),
        pytest.param(HIGH, 90, False, "B50! A20! C30!", id="then-the-next-tier"),
        pytest.param(HIGH, 110, False, "", id="refused-when-too-little"),
        pytest.param(HIGH, 110, True, "B50! A20! C30!", id="all-there-is-when-partial"),
        pytest.param(HIGH, 75, False, "B50! C30!", id="the-lower-one-that-is-not-needed-stays"),
        pytest.param(CRITICAL, 150, False, "B50! D100!", id="two-large-ones-spare-three"),
        pytest.param(NORMAL, 20, False, "A20!", id="exactly-one"),
        pytest.param(NORMAL, 71, False, "", id="normal-does-not-reach-low"),
    ],
)
def test_whole_leases_are_taken_like_parts_when_nobody_can_shrink(
    priority: Priority, need: int, allow_partial: bool, expected: str
) -> None:
    assert gifts(ask(priority, need, *SOLID, allow_partial=allow_partial)) == expected


@pytest.mark.parametrize(
    ("candidates", "need", "expected"),
    [
        pytest.param((HALF, QUARTER), 30, "half30", id="shrinking-of-one-suffices"),
        pytest.param((HALF, QUARTER), 40, "half30 quarter10", id="shrinking-of-a-higher-tier-before-any-end"),
        pytest.param((HALF, QUARTER), 41, "half60!", id="then-the-lowest-ends-and-the-other-need-not-shrink"),
        pytest.param((HALF, QUARTER), 65, "quarter5 half60!", id="and-shrinks-by-the-rest-only"),
        pytest.param((HALF, QUARTER), 75, "half60! quarter40!", id="and-then-all"),
        pytest.param((HALF, QUARTER), 101, "", id="refused"),
        pytest.param((HALF, lease("new", LOW, 10, whole=500, age=5.0)), 75, "", id="too-new-to-end"),
        pytest.param((HALF, lease("new", LOW, 10, whole=500, age=5.0)), 70, "new10 half60!", id="but-it-shrinks"),
        pytest.param((lease("odd", LOW, 9, whole=4),), 9, "odd9", id="ending-frees-less-than-shrinking"),
        pytest.param((lease("odd", LOW, 9, whole=4),), 10, "", id="and-is-not-counted"),
    ],
)
def test_leases_end_only_when_shrinking_is_not_enough(
    candidates: tuple[Candidate, ...], need: int, expected: str
) -> None:
    assert gifts(ask(HIGH, need, *candidates)) == expected


def test_reasons_tell_ending_from_shrinking_when_both_happen() -> None:
    plan = ask(HIGH, 65, HALF, QUARTER)
    assert plan.reasons == {"half": Reason.REVOKED, "quarter": Reason.SHRINKS}
    assert plan.planned == 65


def test_nobody_ends_when_the_rules_forbid_it() -> None:
    plan = ask(HIGH, 41, HALF, QUARTER, rules=Rules(revoke=False))
    assert (plan.refused, plan.available) == (True, 40)


def test_the_cheaper_to_wake_ends_when_sizes_are_equal() -> None:
    slow = replace(lease("slow", LOW, 0, whole=30, age=40.0), wake_cost_s=20.0)
    quick = replace(lease("quick", LOW, 0, whole=30, age=60.0), wake_cost_s=2.0)
    assert gifts(ask(HIGH, 25, slow, quick)) == "quick30!"


def test_lowest_tier_gives_first_when_the_machine_is_short() -> None:
    """No gap, no hold, no protection and no sparing: otherwise everybody would run out of memory."""
    new = lease("new", BACKGROUND, 10, age=0.0)
    tired = replace(lease("tired", LOW, 10), donated_at=(NOW, NOW, NOW), spared_until=NOW + 9)
    protected = replace(lease("protected", HIGH, 10), preemptible=False)
    critical = lease("critical", CRITICAL, 10)
    plan = ask(None, 35, critical, protected, tired, new)
    assert gifts(plan) == "new10 tired10 protected10 critical5"


def test_lowest_tier_ends_first_when_the_machine_is_short_and_nobody_can_shrink() -> None:
    new = lease("new", LOW, 0, whole=50, age=0.0)
    assert gifts(ask(None, 20, new, lease("critical", CRITICAL, 0, whole=20))) == "new50!"


def test_silent_give_and_empty_are_passed_over_when_the_machine_is_short() -> None:
    ill = replace(lease("ill", BACKGROUND, 10), healthy=False)
    plan = ask(None, 20, ill, lease("empty", BACKGROUND, 0), lease("critical", CRITICAL, 10))
    assert gifts(plan) == "ill10 critical10"
    assert because(plan, "empty") is Reason.NOTHING_TO_GIVE
