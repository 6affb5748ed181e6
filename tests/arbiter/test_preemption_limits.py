"""Who is spared by a preemption, and what the arbiter and its devices do to one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import effects
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.types import DirectiveReason, EndReason, Priority, ReclaimLevel
from tests.arbiter.desk import LINEAR, Desk, DeskMaker, gib, taking, wish
from tests.arbiter.preempting import BACKGROUND, CRITICAL, HIGH, NORMAL, Stage, requester, worked


def pair(
    desk: Desk, *, size: float = 100.0, donor: Priority = BACKGROUND, asks: Priority = HIGH
) -> tuple[Stage, Lease]:
    """One donor of 40 GiB that can shed 30, and one of 10 that asks, both held for two seconds."""
    stage = Stage(desk, size=size)
    stage.hold("A", donor, 40)
    return stage, requester(stage, asks)


def level(stage: Stage) -> ReclaimLevel:
    """How urgent the order to the donor is."""
    (donation,) = stage.plan.donations.values()
    return donation.level


# Whom nobody may take from --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("donor", "asks", "reason"),
    [
        pytest.param(HIGH, HIGH, "priority_gap", id="equal"),
        pytest.param(NORMAL, HIGH, "priority_gap", id="one-tier-below"),
        pytest.param(CRITICAL, HIGH, "priority_gap", id="above"),
    ],
)
def test_nobody_gives_when_the_gap_is_too_small(desk: Desk, donor: Priority, asks: Priority, reason: str) -> None:
    stage, lease = pair(desk, donor=donor, asks=asks)
    plan = desk.arbiter.dry_preempt(taking(10, lease), desk.now)
    assert plan.reasons == {stage.leases["A"].lease_id: reason, lease.lease_id: "own_lease"}
    with pytest.raises(errors.NoDonor):
        desk.arbiter.preempt(taking(10, lease), desk.now)


def test_nobody_gives_who_was_granted_a_moment_ago(desk: Desk) -> None:
    stage = Stage(desk)
    stage.hold("A", BACKGROUND, 40)
    lease = stage.hold("R", HIGH, 10)
    desk.at(0.99)
    with pytest.raises(errors.NoDonor, match="held_briefly"):
        desk.arbiter.preempt(taking(10, lease), desk.now)
    desk.at(1.0)
    desk.preempt(10, lease)
    assert stage.orders() == "A10"


def test_nobody_ends_who_has_been_held_for_less_than_half_a_minute(desk: Desk) -> None:
    stage, lease = pair(desk)
    stage.at(29.9)
    assert desk.arbiter.dry_preempt(taking(40, lease), desk.now).available == gib(30)
    stage.at(30.0)
    assert desk.arbiter.dry_preempt(taking(40, lease), desk.now).available == gib(40)


def test_suspect_donor_is_passed_over(desk: Desk) -> None:
    desk.box(100)
    donor = desk.take(wish("donor", 40, priority=BACKGROUND, floor=10, ttl=10))
    lease = desk.take(wish("asks", 10, rigid=True, priority=HIGH, ttl=100))
    desk.at(6.0)
    assert donor.suspect
    with pytest.raises(errors.NoDonor, match="unhealthy"):
        desk.arbiter.preempt(taking(10, lease), desk.now)


def test_protection_counts_from_high_on(make_desk: DeskMaker) -> None:
    rules = replace(LINEAR.preemption.rules, gap=1)
    desk = make_desk(replace(LINEAR, preemption=replace(LINEAR.preemption, rules=rules)))
    stage = Stage(desk)
    stage.hold("A", HIGH, 40, preemptible=False)
    stage.hold("B", NORMAL, 40, preemptible=False)
    lease = requester(stage, CRITICAL)
    plan = desk.arbiter.dry_preempt(taking(10, lease), desk.now)
    assert {stage.name_of(name): reason.value for name, reason in plan.reasons.items()} == {
        "A": "not_preemptible",
        "B": "shrinks",
        "R": "own_lease",
    }


def test_victim_cannot_take_back(desk: Desk) -> None:
    stage = Stage(desk)
    stage.hold("A", BACKGROUND, 40)
    stage.hold("B", NORMAL, 40)
    stage.at(2.0)
    desk.preempt(10, stage.leases["B"])
    stage.give("A")
    stage.at(30.0)
    with pytest.raises(errors.NoDonor, match="priority_gap"):
        desk.arbiter.preempt(taking(10, stage.leases["A"]), desk.now)


def test_nothing_swings_when_the_same_lease_asks_for_ever(desk: Desk) -> None:
    """Every ten seconds two donations at most, and every byte moves one way."""
    stage, lease = pair(desk)
    donor, limits = stage.leases["A"], [gib(10)]
    orders = 0
    for _ in range(60):
        if not stage.open:
            try:
                desk.preempt(1, lease)
                orders += 1
            except errors.NoDonor:
                desk.collect()
        if donor.reclaim is not None:
            stage.give("A")
        limits.append(lease.limit_bytes)
        stage.at(desk.now + 0.5)
    assert limits == sorted(limits)
    assert 6 <= orders <= 2 * (30 / 10 + 1)
    assert donor.limit_bytes >= gib(10)


# The arbiter and its devices ------------------------------------------------------------------------------------------


def test_donor_is_not_revoked_when_the_arbiter_itself_was_away(make_desk: DeskMaker) -> None:
    desk = make_desk(replace(LINEAR, pause_guard_s=1.5))
    stage, lease = pair(desk)
    start = desk.now
    ticket = desk.preempt(10, lease)
    donor = stage.leases["A"]
    desk.at(start + 5.0)
    assert (donor.alive, level(stage)) == (True, ReclaimLevel.SOFT)
    desk.at(start + 5.5)
    assert (donor.alive, level(stage)) == (True, ReclaimLevel.HARD)
    desk.at(start + 6.9)
    assert donor.alive
    desk.at(start + 7.0)
    assert donor.end_reason is EndReason.PREEMPTED
    assert ticket not in desk.closed
    for second in range(8, 19):
        desk.at(start + second)
        stage.measure()
    assert ticket not in desk.closed
    desk.at(start + 19.0)
    assert desk.closed[ticket].error is not None


def test_plan_is_withdrawn_when_its_device_is_lost(desk: Desk) -> None:
    stage, lease = pair(desk)
    ticket = desk.preempt(10, lease)
    desk.sample({}, lost=True)
    assert isinstance(desk.closed[ticket].error, errors.DeviceStale)
    assert (stage.open, stage.earmarked) == (False, 0.0)
    assert lease.end_reason is EndReason.DEVICE_LOST


def test_bytes_count_when_they_came_free_just_before_a_deadline_that_is_noticed_late(desk: Desk) -> None:
    desk.box(100)
    donor = desk.take(wish("donor", 40, priority=BACKGROUND, floor=10, ttl=5))
    lease = desk.take(wish("asks", 10, rigid=True, priority=HIGH, ttl=1000))
    desk.at(2.0)
    ticket = desk.preempt(10, lease, grace=10.25)
    # Its bytes are held for half a minute, the plan lasts half a second longer.
    desk.release(donor)
    desk.at(31.0)
    assert ticket not in desk.closed
    desk.at(33.0)
    assert desk.closed[ticket].error is None
    assert lease.limit_bytes == gib(20)


def test_directives_say_why_when_a_plan_asks_and_lets_off(desk: Desk) -> None:
    stage, lease = pair(desk)
    ticket = desk.preempt(10, lease)
    donor = stage.leases["A"]
    assert (donor.directive_reason, donor.limit_bytes) == (DirectiveReason.PREEMPTION, gib(30))
    told = desk.told(donor)
    desk.withdraw(ticket)
    assert desk.told(donor) == told + 1
    assert any(isinstance(each, effects.ReclaimCancelled) for each in desk.effects)


def test_many_donors_settle_in_any_order(desk: Desk) -> None:
    stage = worked(desk)
    lease = requester(stage, CRITICAL)
    ticket = desk.preempt(190, lease)
    for name in ("D", "C", "A", "B"):
        assert ticket not in desk.closed
        stage.give(name)
    assert lease.limit_bytes == gib(200)
