"""The machine itself is short: strangers grew beyond what everybody's minimum leaves them, and somebody has to go."""

from __future__ import annotations

from arbiter_sidecar import errors
from arbiter_sidecar.types import EndReason, EventKind
from tests.arbiter.desk import Desk, gib, wish
from tests.arbiter.preempting import BACKGROUND, CRITICAL, HIGH, NORMAL, Stage


def crowd(desk: Desk) -> Stage:
    """Sixty GiB, of which three that cannot shrink hold 15 each."""
    stage = Stage(desk, size=60)
    for name, priority in (("hi", HIGH), ("bg", BACKGROUND), ("no", NORMAL)):
        stage.hold(name, priority, 15, floor=15, preemptible=False)
    return stage


def test_lowest_tier_goes_when_strangers_grow(desk: Desk) -> None:
    stage = crowd(desk)
    stage.measure(foreign=20.0)
    assert stage.orders() == "bg15!"
    assert (stage.plan.machine, stage.plan.need_bytes) == (True, gib(5))
    (planned,) = desk.events(EventKind.PREEMPTION_PLANNED)
    assert (planned.lease_id, planned.fields["priority"]) == ("", "machine")


def test_nobody_is_too_new_or_too_important_when_the_machine_is_short(desk: Desk) -> None:
    """All were granted this very moment, and none of them may be preempted by anybody else."""
    stage = Stage(desk, size=60)
    for name in ("one", "two", "three"):
        stage.hold(name, CRITICAL, 15, floor=15, preemptible=False)
    stage.measure(foreign=40.0)
    assert [each.whole for each in stage.plan.donations.values()] == [True, True]


def test_several_go_when_one_is_not_enough(desk: Desk) -> None:
    stage = crowd(desk)
    stage.measure(foreign=40.0)
    assert stage.orders() == "bg15! no15!"


def test_silent_and_willing_alike_are_revoked_at_the_deadline(desk: Desk) -> None:
    stage = crowd(desk)
    stage.measure(foreign=40.0)
    desk.ack(stage.leases["no"])
    stage.at(2.0, foreign=40.0)
    assert [stage.leases[name].end_reason for name in ("bg", "no")] == [EndReason.PREEMPTED] * 2
    assert stage.leases["hi"].alive
    stage.measure_gone("bg", "no", foreign=40.0)
    assert not stage.open
    (settled,) = desk.events(EventKind.PREEMPTION_SETTLED)
    assert settled.fields["outcome"] == "enough"


def test_quality_gives_first_when_that_is_enough(desk: Desk) -> None:
    stage = Stage(desk, size=60)
    stage.hold("elastic", BACKGROUND, 30, floor=10)
    stage.hold("rigid", NORMAL, 15, floor=15)
    stage.measure(foreign=30.0)
    assert not stage.open
    assert stage.leases["elastic"].limit_bytes < gib(30)


def test_whole_lease_must_go_although_it_shrinks_meanwhile(desk: Desk) -> None:
    """What it sheds down to its minimum was due anyway, and does not count for the minimum itself."""
    stage = Stage(desk, size=60)
    stage.hold("elastic", BACKGROUND, 30, floor=10)
    stage.hold("rigid", NORMAL, 15, floor=15)
    stage.measure(foreign=25.0)
    # It has been told to shrink, and has not done it, when even its minimum becomes too much.
    stage.measure(foreign=40.0)
    assert stage.orders() == "elastic10!"
    donor = stage.leases["elastic"]
    stage.held["elastic"] = donor.limit_bytes / gib(1)
    stage.measure(foreign=40.0)
    desk.report(donor)
    assert (stage.plan.confirmed_bytes, stage.open) == (0, True)
    stage.at(2.0, foreign=40.0)
    assert donor.end_reason is EndReason.PREEMPTED


def test_everybody_stays_when_the_strangers_leave_in_time(desk: Desk) -> None:
    stage = crowd(desk)
    stage.measure(foreign=20.0)
    donor = stage.leases["bg"]
    assert donor.leaving
    desk.at(1.0)
    # What is free is believed by and by only.
    for _ in range(12):
        stage.measure()
    assert (stage.open, donor.reclaim, stage.let_off("bg")) == (False, None, True)
    stage.at(5.0)
    assert donor.alive
    (settled,) = desk.events(EventKind.PREEMPTION_SETTLED)
    assert settled.fields["outcome"] == "withdrawn"


def test_one_stays_when_another_went_by_itself(desk: Desk) -> None:
    stage = crowd(desk)
    stage.measure(foreign=40.0)
    assert stage.orders() == "bg15! no15!"
    desk.release(stage.leases["hi"])
    stage.measure_gone("hi", foreign=40.0)
    stage.at(2.0, foreign=40.0)
    assert stage.leases["bg"].end_reason is EndReason.PREEMPTED
    assert (stage.leases["no"].alive, stage.let_off("no"), stage.open) == (True, True, False)
    stage.at(4.0, foreign=40.0)
    assert stage.leases["no"].alive


def test_nobody_else_goes_while_the_bytes_of_the_ended_are_on_their_way(desk: Desk) -> None:
    stage = crowd(desk)
    stage.measure(foreign=10.0)
    desk.release(stage.leases["bg"])
    stage.at(9.0, foreign=25.0)
    assert not stage.open


def test_another_goes_when_the_ended_keep_their_bytes_for_good(desk: Desk) -> None:
    stage = crowd(desk)
    desk.release(stage.leases["bg"])
    stage.at(9.0, foreign=20.0)
    assert not stage.open
    stage.at(11.0, foreign=20.0)
    assert stage.leases["bg"].residue_alarmed
    assert stage.orders() == "no15!"


def test_nothing_is_asked_when_little_is_known(desk: Desk) -> None:
    stage = crowd(desk)
    stage.measure(foreign=20.0)
    device = desk.device("gpu")
    desk.release(stage.leases["bg"])
    stage.measure_gone("bg", foreign=20.0)
    assert device.plan is None
    # Old figures do not take a lease from anybody.
    desk.sample({1: 15.0, 3: 15.0}, foreign=40.0, taken_at=desk.now - 6.0)
    assert device.frozen(desk.now)
    assert device.plan is None
    desk.sample({1: 15.0, 3: 15.0}, foreign=40.0)
    assert stage.orders() == "no15!"


def test_the_machine_goes_first_when_it_becomes_short_while_a_plan_is_open(desk: Desk) -> None:
    stage = Stage(desk, size=60)
    stage.hold("A", BACKGROUND, 20, floor=10)
    stage.hold("R", HIGH, 15, floor=15)
    stage.at(2.0)
    ticket = desk.preempt(2, stage.leases["R"])
    stage.measure(foreign=40.0)
    assert stage.plan.machine
    error = desk.closed[ticket].error
    assert isinstance(error, errors.NoDonor)
    assert "the device itself fell short" in error.message
    assert stage.leases["R"].limit_bytes == gib(15)
    assert desk.ask(wish("late", 5, rigid=True, wait=30))
