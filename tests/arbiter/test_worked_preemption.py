"""The worked numbers of taking memory that no other test asks of real leases: nothing, and the edges of time."""

from __future__ import annotations

import pytest

from arbiter_sidecar.types import EndReason
from tests.arbiter.desk import Desk, gib, taking
from tests.arbiter.preempting import BACKGROUND, HIGH, Stage, requester, worked


@pytest.mark.parametrize("need", [0.0, -5.0])
def test_nothing_is_taken_and_all_is_well_when_nothing_is_needed(desk: Desk, need: float) -> None:
    stage = worked(desk)
    lease = requester(stage, HIGH)
    limits = [each.limit_bytes for each in stage.leases.values()]
    plan = desk.arbiter.dry_preempt(taking(need, lease), desk.now)
    assert (plan.refused, plan.donations) == (False, ())
    if need == 0.0:
        ticket = desk.preempt(need, lease)
        assert desk.closed[ticket].error is None
        assert not desk.plan_of(ticket).donations
    assert [each.limit_bytes for each in stage.leases.values()] == limits
    assert not stage.open


def test_donor_is_spared_from_its_second_order_until_the_first_is_ten_seconds_old(desk: Desk) -> None:
    stage = worked(desk)
    lease = requester(stage, HIGH)
    for moment in (10.0, 13.0):
        stage.at(moment)
        desk.preempt(1, lease)
        assert stage.orders() == "A1"
        stage.give("A")
    name = stage.leases["A"].lease_id
    for moment, reason in ((16.0, "gave_often"), (19.9, "gave_often"), (20.0, "shrinks")):
        stage.at(moment)
        assert desk.arbiter.dry_preempt(taking(10, lease), desk.now).reasons[name].value == reason


def test_part_that_was_given_is_credited_when_the_rest_is_asked_of_others(desk: Desk) -> None:
    """60 are needed: B gives 30 of its 50 and A all of its 10; the 20 that are missing come from A and C."""
    stage = worked(desk)
    lease = requester(stage, HIGH)
    ticket = desk.preempt(60, lease)
    stage.give("A")
    stage.held["B"] -= 30.0
    stage.measure()
    desk.ack(stage.leases["B"])
    assert stage.earmarked == 40.0
    stage.at(desk.now + 2.0)
    given = {stage.name_of(name): each.confirmed_bytes for name, each in stage.plan.donations.items()}
    asked = {stage.name_of(name): each.planned_bytes for name, each in stage.plan.donations.items()}
    assert given == {"B": gib(30), "A": gib(10), "C": 0}
    assert asked == {"B": gib(50), "A": gib(20), "C": gib(10)}
    stage.give("A", "C")
    assert desk.closed[ticket].error is None
    assert (lease.limit_bytes, stage.earmarked) == (gib(70), 0.0)


@pytest.mark.parametrize(("moment", "ends"), [(1.999, False), (2.0, True)])
def test_silent_donor_has_two_seconds_when_the_request_names_no_time(desk: Desk, moment: float, ends: bool) -> None:
    stage = Stage(desk, size=100)
    stage.hold("A", BACKGROUND, 40)
    lease = requester(stage, HIGH)
    desk.preempt(10, lease)
    desk.at(desk.now + moment)
    assert (stage.leases["A"].end_reason is EndReason.PREEMPTED) is ends
