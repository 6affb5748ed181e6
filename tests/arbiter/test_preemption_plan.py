"""Who has to give, end to end: the worked numbers asked by real leases, given by real donors, credited to the byte."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.types import DirectiveReason, DonationOutcome, EventKind, LeaseState, Priority
from tests.arbiter.desk import Desk, gib, state_of, taking, wish
from tests.arbiter.preempting import BACKGROUND, CRITICAL, FLOOR, HIGH, LOW, NORMAL, Stage, requester, worked


@pytest.mark.parametrize(
    ("priority", "need", "partial", "expected"),
    [
        pytest.param(HIGH, 10, False, "A10", id="the-smallest-that-covers"),
        pytest.param(HIGH, 60, False, "B50 A10", id="else-the-largest-first"),
        pytest.param(HIGH, 90, False, "B50 A20 C20", id="then-the-next-tier"),
        pytest.param(HIGH, 110, True, "B50 A20 C30", id="all-there-is-when-partial"),
        pytest.param(CRITICAL, 150, False, "B50 A20 C30 D50", id="critical-reaches-normal"),
        pytest.param(NORMAL, 20, False, "A20", id="normal-takes-from-background"),
    ],
)
def test_requester_has_the_bytes_when_its_donors_have_given(
    desk: Desk, priority: Priority, need: int, partial: bool, expected: str
) -> None:
    stage = worked(desk)
    lease = requester(stage, priority)
    before = {name: each.limit_bytes for name, each in stage.leases.items()}
    ticket = desk.preempt(need, lease, partial=partial)
    assert stage.orders() == expected
    for name, donor in stage.leases.items():
        if name in expected:
            assert state_of(donor) is LeaseState.RECLAIMING
            assert donor.directive_reason is DirectiveReason.PREEMPTION
            stage.give(name)
    assert desk.closed[ticket].error is None
    plan = desk.plan_of(ticket)
    given = plan.confirmed_bytes
    assert given == min(gib(need), gib(100) if partial else gib(need))
    assert {each.outcome for each in plan.donations.values()} == {DonationOutcome.CONFIRMED}
    assert lease.limit_bytes == lease.charged_bytes == gib(10) + given
    assert lease.directive_reason is DirectiveReason.PREEMPTION
    taken = {
        name: before[name] - each.limit_bytes for name, each in stage.leases.items() if name != "R" and name in expected
    }
    assert sum(taken.values()) == given
    assert all(each.limit_bytes >= gib(FLOOR) for each in stage.leases.values())
    assert (stage.earmarked, stage.open) == (0.0, False)
    assert desk.books.stats.preemptions == 1


@pytest.mark.parametrize(
    ("priority", "need", "available"),
    [
        pytest.param(HIGH, 110, 100, id="too-little-within-reach"),
        pytest.param(NORMAL, 71, 70, id="normal-does-not-reach-low"),
        pytest.param(LOW, 10, 0, id="low-reaches-nobody"),
    ],
)
def test_nothing_happens_when_too_little_can_be_taken(
    desk: Desk, priority: Priority, need: int, available: int
) -> None:
    stage = worked(desk)
    lease = requester(stage, priority)
    picture = desk.picture()
    with pytest.raises(errors.NoDonor) as refused:
        desk.arbiter.preempt(taking(need, lease), desk.now)
    assert refused.value.metadata()["available"] == str(gib(available))
    assert desk.picture() == picture


def test_another_gives_when_one_gave_twice_of_late(desk: Desk) -> None:
    stage = worked(desk)
    lease = requester(stage, HIGH)
    for moment in (10.0, 13.0):
        stage.at(moment)
        desk.preempt(1, lease)
        assert stage.orders() == "A1"
        stage.give("A")
    stage.at(16.0)
    desk.preempt(10, lease)
    assert stage.orders() == "B10"
    assert stage.plan.rejected[stage.leases["A"].lease_id] == "gave_often"
    stage.give("B")
    stage.at(23.0)
    desk.preempt(10, lease)
    assert stage.orders() == "A10"


def test_another_gives_when_one_gave_a_moment_ago(desk: Desk) -> None:
    stage = worked(desk)
    lease = requester(stage, HIGH)
    stage.at(10.0)
    desk.preempt(1, lease)
    stage.give("A")
    stage.at(11.9)
    desk.preempt(10, lease)
    assert stage.orders() == "B10"
    assert stage.plan.rejected[stage.leases["A"].lease_id] == "cooling_down"


def test_the_newer_gives_when_two_are_alike(desk: Desk) -> None:
    stage = Stage(desk)
    stage.hold("old", BACKGROUND, 40)
    desk.at(1.0)
    stage.hold("new", BACKGROUND, 40)
    lease = requester(stage, HIGH)
    desk.preempt(30, lease)
    assert stage.orders() == "new30"


def test_shortfall_is_asked_of_those_who_can_give_more_when_a_donor_gives_too_little(desk: Desk) -> None:
    stage = worked(desk)
    lease = requester(stage, HIGH)
    ticket = desk.preempt(60, lease)
    assert stage.orders() == "B50 A10"
    stage.give("A")
    first = stage.plan.donations[stage.leases["A"].lease_id].reclaim_id
    stage.held["B"] -= 30.0
    stage.measure()
    desk.ack(stage.leases["B"])
    assert (stage.earmarked, stage.plan.confirmed_bytes) == (40.0, gib(40))
    stage.at(desk.now + 2.0)
    assert stage.orders() == "B50 A20 C10"
    b, a, _ = stage.plan.donations.values()
    assert (b.outcome, b.confirmed_bytes) == (DonationOutcome.PARTIAL, gib(30))
    assert (a.outcome, a.confirmed_bytes) == (DonationOutcome.OPEN, gib(10))
    assert a.reclaim_id != first
    assert stage.leases["B"].alive
    assert stage.leases["B"].reclaim is None
    stage.give("C", "A")
    assert desk.closed[ticket].error is None
    assert lease.limit_bytes == gib(70)


def test_the_donors_of_a_person_give_to_everybody(desk: Desk) -> None:
    stage = worked(desk)
    stage.at(desk.now + 2.0)
    free = stage.free
    ticket = desk.preempt(10, device="gpu", priority=HIGH)
    assert stage.orders() == "A10"
    stage.give("A")
    assert desk.closed[ticket].error is None
    assert (stage.free - free, stage.earmarked) == (10.0, 0.0)


def test_donors_of_a_person_shrink_when_one_gave_too_little(desk: Desk) -> None:
    stage = worked(desk)
    stage.at(desk.now + 2.0)
    desk.preempt(10, device="gpu", priority=HIGH)
    desk.ack(stage.leases["A"], done=False)
    stage.at(desk.now + 2.0)
    assert stage.orders() == "A10 B10"


def test_whole_leases_are_taken_when_all_that_can_be_shed_is_too_little(desk: Desk) -> None:
    stage = worked(desk)
    lease = requester(stage, HIGH)
    stage.at(40.0)
    ticket = desk.preempt(110, lease)
    assert stage.orders() == "A20 C30 B60!"
    stage.give("A", "C")
    desk.ack(stage.leases["B"])
    assert stage.earmarked == 50.0
    desk.release(stage.leases["B"])
    assert stage.open
    stage.measure_gone("B")
    assert desk.closed[ticket].error is None
    assert lease.limit_bytes == gib(120)


def test_dry_run_says_who_would_lose_what_and_changes_nothing(desk: Desk) -> None:
    stage = worked(desk)
    lease = requester(stage, HIGH)
    picture = desk.picture()
    plan = desk.arbiter.dry_preempt(taking(90, lease), desk.now)
    assert [(stage.name_of(each.lease_id), each.amount) for each in plan.donations] == [
        ("B", gib(50)),
        ("A", gib(20)),
        ("C", gib(20)),
    ]
    assert {stage.name_of(name): reason.value for name, reason in plan.reasons.items()} == {
        "A": "shrinks",
        "B": "shrinks",
        "C": "shrinks",
        "D": "priority_gap",
        "E": "priority_gap",
        "R": "own_lease",
    }
    assert desk.picture() == picture
    refused = desk.arbiter.dry_preempt(taking(110, lease), desk.now)
    assert (refused.refused, refused.available) == (True, gib(100))


def test_caller_joins_the_plan_when_its_lease_has_one_under_way(desk: Desk) -> None:
    stage = worked(desk)
    lease = requester(stage, HIGH)
    first, second = desk.preempt(10, lease), desk.preempt(10, lease)
    assert stage.orders() == "A10"
    stage.give("A")
    assert desk.plan_of(first) is desk.plan_of(second)
    assert lease.limit_bytes == gib(20)


def test_bad_wishes_are_refused(desk: Desk) -> None:
    stage = worked(desk)
    desk.box()
    lease = requester(stage, HIGH)
    with pytest.raises(errors.InvalidRequest, match="above that of the lease"):
        desk.arbiter.preempt(taking(10, lease, CRITICAL), desk.now)
    with pytest.raises(errors.InvalidRequest, match="the lease is on gpu"):
        desk.arbiter.preempt(taking(10, lease, device="box"), desk.now)
    with pytest.raises(errors.InvalidRequest, match="required"):
        desk.arbiter.preempt(taking(10), desk.now)
    with pytest.raises(errors.DeviceNotFound):
        desk.arbiter.preempt(taking(10, device="attic"), desk.now)
    with pytest.raises(errors.NoDonor, match="0 could be taken at most"):
        desk.arbiter.preempt(taking(10, device="box", priority=CRITICAL), desk.now)
    desk.release(lease)
    with pytest.raises(errors.LeaseNotFound):
        desk.arbiter.preempt(taking(10, lease), desk.now)
    desk.arbiter.drain(desk.now)
    with pytest.raises(errors.ShuttingDown):
        desk.arbiter.preempt(taking(10, device="gpu"), desk.now)


def test_lease_asks_with_less_than_its_own_priority_when_it_says_so(desk: Desk) -> None:
    stage = worked(desk)
    lease = requester(stage, CRITICAL)
    assert desk.arbiter.dry_preempt(taking(20, lease, LOW), desk.now).refused
    desk.preempt(20, lease, priority=NORMAL)
    assert stage.orders() == "A20"


def test_lease_cannot_ask_when_its_deadline_has_passed(desk: Desk) -> None:
    """Nobody has looked yet what is due, and yet the lease is dead."""
    desk.box(20)
    desk.take(wish("donor", 10, priority=BACKGROUND, ttl=100))
    lease = desk.take(wish("asks", 4, rigid=True, priority=HIGH, ttl=10))
    desk.now = 10.0
    with pytest.raises(errors.LeaseNotFound):
        desk.arbiter.preempt(taking(1, lease), desk.now)


def test_every_step_is_told_when_a_plan_runs(desk: Desk) -> None:
    stage = worked(desk)
    lease = requester(stage, HIGH)
    desk.preempt(10, lease)
    stage.give("A")
    (planned,) = desk.events(EventKind.PREEMPTION_PLANNED)
    (asked,) = desk.events(EventKind.RECLAIM_REQUESTED)
    (settled,) = desk.events(EventKind.PREEMPTION_SETTLED)
    assert planned.lease_id == settled.lease_id == lease.lease_id
    assert (planned.fields["donors"], planned.fields["priority"]) == (stage.leases["A"].lease_id, "HIGH")
    assert (asked.lease_id, asked.fields["memory_bytes"]) == (stage.leases["A"].lease_id, str(gib(10)))
    assert settled.fields["outcome"] == "enough"
    account = desk.books.accounts.of("default", "A")
    assert (account.reclaims, account.floor_breaches) == (1, 0)
