"""How a preemption runs its course: the silent, the lying, the dead, and those who want the bytes that were freed."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.requests import PreemptionRequest
from arbiter_sidecar.types import DonationOutcome, EndReason, EventKind, Priority, ReclaimLevel, ReportOutcome
from tests.arbiter.desk import Desk, gib, qualities, wish
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


# Silence --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grace", "presses"), [(2.0, 0.5), (8.0, 1.0), (0.4, 0.1)])
def test_silent_donor_is_pressed_when_a_quarter_of_its_grace_has_passed(
    desk: Desk, grace: float, presses: float
) -> None:
    stage, lease = pair(desk)
    start = desk.now
    desk.preempt(10, lease, grace=grace)
    revision = stage.leases["A"].revision
    desk.at(start + presses - 0.01)
    assert level(stage) is ReclaimLevel.SOFT
    desk.at(start + presses)
    assert level(stage) is ReclaimLevel.HARD
    assert stage.leases["A"].revision > revision
    assert len(desk.events(EventKind.RECLAIM_ESCALATED)) == 1


def test_donor_is_not_pressed_when_it_has_answered(desk: Desk) -> None:
    stage, lease = pair(desk)
    desk.preempt(10, lease)
    desk.ack(stage.leases["A"], done=False)
    desk.ack(stage.leases["A"], done=False)
    stage.at(desk.now + 1.5)
    assert level(stage) is ReclaimLevel.SOFT
    assert len(desk.events(EventKind.RECLAIM_ACKNOWLEDGED)) == 1


def test_silent_donor_is_revoked_at_the_deadline_and_its_bytes_count_when_measured_gone(desk: Desk) -> None:
    stage, lease = pair(desk)
    start = desk.now
    ticket = desk.preempt(10, lease)
    donor = stage.leases["A"]
    stage.at(start + 1.9)
    assert donor.alive
    stage.at(start + 2.0)
    assert donor.end_reason is EndReason.PREEMPTED
    assert ticket not in desk.closed
    assert (lease.limit_bytes, stage.earmarked) == (gib(10), 0.0)
    stage.measure_gone("A")
    assert desk.closed[ticket].error is None
    (donation,) = desk.plan_of(ticket).donations.values()
    assert (donation.outcome, donation.confirmed_bytes) == (DonationOutcome.REVOKED, gib(10))
    assert lease.limit_bytes == gib(20)
    assert desk.books.accounts.of("default", "A").floor_breaches == 1


def test_whole_donor_is_revoked_although_it_answers(desk: Desk) -> None:
    stage, lease = pair(desk)
    stage.at(40.0)
    desk.preempt(40, lease)
    assert stage.orders() == "A40!"
    desk.ack(stage.leases["A"])
    desk.apply(stage.leases["A"])
    stage.at(42.0)
    assert stage.leases["A"].end_reason is EndReason.PREEMPTED


def test_plan_gives_up_when_the_revoked_never_let_go(desk: Desk) -> None:
    stage, lease = pair(desk)
    start = desk.now
    ticket = desk.preempt(10, lease)
    stage.at(start + 13.9)
    assert ticket not in desk.closed
    stage.at(start + 14.0)
    error = desk.closed[ticket].error
    assert isinstance(error, errors.NoDonor)
    assert error.metadata() == {"confirmed": "0", "needed": str(gib(10))}
    assert (lease.limit_bytes, stage.open) == (gib(10), False)
    (settled,) = desk.events(EventKind.PREEMPTION_SETTLED)
    assert settled.fields["outcome"] == "too_little"


def test_requester_gets_nothing_when_it_wants_all_and_only_a_part_came_free(desk: Desk) -> None:
    stage, lease = pair(desk)
    ticket = desk.preempt(10, lease)
    stage.held["A"] -= 4.0
    stage.measure()
    desk.ack(stage.leases["A"])
    assert stage.earmarked == 4.0
    stage.at(desk.now + 2.0)
    # Nobody is left who could give, so there is nothing to wait for.
    assert isinstance(desk.closed[ticket].error, errors.NoDonor)
    assert (lease.limit_bytes, stage.earmarked, stage.open) == (gib(10), 0.0, False)
    assert stage.leases["A"].alive


def test_requester_gets_a_part_when_it_said_that_less_is_welcome(desk: Desk) -> None:
    stage, lease = pair(desk)
    ticket = desk.preempt(10, lease, partial=True)
    stage.held["A"] -= 4.0
    stage.measure()
    desk.ack(stage.leases["A"])
    stage.at(desk.now + 2.0)
    assert desk.closed[ticket].error is None
    assert lease.limit_bytes == gib(14)


def test_partial_plan_ends_at_once_when_all_that_could_be_asked_was_given(desk: Desk) -> None:
    stage, lease = pair(desk)
    ticket = desk.preempt(70, lease, partial=True)
    assert stage.orders() == "A30"
    stage.give("A")
    assert desk.closed[ticket].error is None
    assert lease.limit_bytes == gib(40)


def test_donors_are_asked_once_more_at_most(desk: Desk) -> None:
    stage = worked(desk)
    lease = requester(stage, HIGH)
    start = desk.now
    ticket = desk.preempt(10, lease)
    desk.ack(stage.leases["A"], done=False)
    stage.at(start + 2.0)
    assert stage.orders() == "A10 B10"
    desk.ack(stage.leases["B"], done=False)
    stage.at(start + 4.0)
    assert isinstance(desk.closed[ticket].error, errors.NoDonor)
    assert all(each.alive for each in stage.leases.values())


# Who gets what was freed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("priority", [NORMAL, CRITICAL])
def test_earmarked_bytes_are_nobody_elses(desk: Desk, priority: Priority) -> None:
    stage = Stage(desk, size=120)
    for name in ("A", "B"):
        stage.hold(name, BACKGROUND, 40)
    lease = requester(stage, HIGH)
    desk.preempt(60, lease)
    stage.give("B")
    assert (stage.earmarked, stage.free) == (30.0, 30.0)
    taker = desk.ask(wish("taker", 31, rigid=True, priority=priority, pids=(9,), wait=100, ttl=500))
    assert desk.waits(taker)
    stage.give("A")
    assert lease.limit_bytes == gib(70)
    assert desk.waits(taker)


def test_more_than_was_asked_for_goes_to_everybody(desk: Desk) -> None:
    stage, lease = pair(desk)
    donor = stage.leases["A"]
    desk.preempt(10, lease)
    free = stage.free
    desk.release(donor)
    stage.measure_gone("A")
    assert lease.limit_bytes == gib(20)
    assert stage.free == free + 30.0


def test_credit_waits_when_strangers_took_the_bytes(desk: Desk) -> None:
    stage, lease = pair(desk, size=60)
    ticket = desk.preempt(10, lease)
    desk.ack(stage.leases["A"])
    stage.held["A"] = 30.0
    stage.measure(foreign=15.0)
    assert (stage.earmarked, stage.free) == (10.0, -5.0)
    assert (lease.limit_bytes, ticket in desk.closed) == (gib(10), False)
    for _ in range(30):
        stage.measure()
    assert desk.closed[ticket].error is None
    assert lease.limit_bytes == gib(20)


def test_credit_is_refused_at_last_when_strangers_keep_the_bytes(desk: Desk) -> None:
    stage, lease = pair(desk, size=60)
    ticket = desk.preempt(10, lease)
    desk.ack(stage.leases["A"])
    stage.held["A"] = 30.0
    stage.measure(foreign=15.0)
    stage.at(desk.now + 14.0, foreign=15.0)
    error = desk.closed[ticket].error
    assert isinstance(error, errors.NoDonor)
    assert error.metadata()["confirmed"] == str(gib(5))
    assert (lease.limit_bytes, stage.earmarked) == (gib(10), 0.0)


def test_credit_waits_when_the_device_has_not_been_measured_for_long(desk: Desk) -> None:
    stage = Stage(desk, size=100)
    donor = desk.take(wish("A", 40, priority=BACKGROUND, floor=10, ttl=1000))
    lease = requester(stage, HIGH)
    ticket = desk.preempt(10, lease, grace=30.0)
    desk.at(desk.now + 5.5)
    desk.ack(donor)
    assert (stage.earmarked, ticket in desk.closed) == (10.0, False)
    stage.measure()
    assert desk.closed[ticket].error is None


def test_bytes_go_back_to_everybody_when_the_requester_dies(desk: Desk) -> None:
    stage = Stage(desk, size=120)
    for name in ("A", "B"):
        stage.hold(name, BACKGROUND, 40)
    lease = requester(stage, HIGH)
    ticket = desk.preempt(60, lease)
    stage.give("B")
    desk.release(lease)
    assert (stage.open, stage.earmarked) == (False, 0.0)
    assert isinstance(desk.closed[ticket].error, errors.LeaseNotFound)
    assert (stage.let_off("A"), stage.let_off("B")) == (True, False)
    assert all(stage.leases[name].reclaim is None for name in "AB")
    # What they gave they may take again, in steps, as everybody who has room.
    stage.at(40.0)
    desk.apply(*(stage.leases[name] for name in "AB"))
    assert qualities(stage.leases[name] for name in "AB") == [1.0, 1.0]
    assert desk.books.stats.preemptions == 0


def test_requester_that_dies_as_the_last_byte_comes_free_gets_nothing(desk: Desk) -> None:
    desk.box(100)
    donor = desk.take(wish("donor", 40, priority=BACKGROUND, floor=10, ttl=100))
    lease = desk.take(wish("asks", 10, rigid=True, priority=HIGH, ttl=10))
    desk.now = 9.0
    ticket = desk.preempt(10, lease)
    desk.now = 10.0
    desk.ack(donor)
    assert isinstance(desk.closed[ticket].error, errors.LeaseNotFound)
    assert lease.limit_bytes == gib(10)


def test_donors_are_let_off_when_the_last_caller_withdraws(desk: Desk) -> None:
    stage, lease = pair(desk)
    first, second = desk.preempt(10, lease), desk.preempt(10, lease)
    desk.withdraw(first)
    assert stage.open
    desk.withdraw(second)
    desk.withdraw(second)
    assert (stage.open, stage.let_off("A")) == (False, True)
    assert desk.closed == {}


# Donors that go their own way -----------------------------------------------------------------------------------------


def test_donor_that_lies_is_not_believed(desk: Desk) -> None:
    stage, lease = pair(desk)
    ticket = desk.preempt(10, lease)
    desk.ack(stage.leases["A"])
    stage.measure()
    assert (stage.earmarked, stage.plan.confirmed_bytes) == (0.0, 0)
    stage.at(desk.now + 2.0)
    assert isinstance(desk.closed[ticket].error, errors.NoDonor)
    assert lease.limit_bytes == gib(10)


def test_donor_is_believed_when_nothing_can_be_measured(desk: Desk) -> None:
    desk.box(100)
    donor = desk.take(wish("donor", 40, priority=BACKGROUND, floor=10, ttl=100))
    lease = desk.take(wish("asks", 10, rigid=True, priority=HIGH, ttl=100))
    desk.at(2.0)
    ticket = desk.preempt(10, lease)
    desk.apply(donor)
    assert desk.closed[ticket].error is None
    assert (donor.charged_bytes, lease.limit_bytes) == (gib(30), gib(20))


def test_an_old_answer_does_not_count_for_a_new_order(desk: Desk) -> None:
    stage, lease = pair(desk)
    desk.preempt(1, lease)
    donor = stage.leases["A"]
    assert donor.reclaim is not None
    old = donor.reclaim.reclaim_id
    stage.give("A")
    stage.at(desk.now + 4.0)
    desk.preempt(1, lease)
    assert donor.reclaim is not None
    assert donor.reclaim.reclaim_id != old
    assert not donor.reclaim.acknowledged


def test_donor_gives_by_its_measured_use_when_it_says_nothing(desk: Desk) -> None:
    stage, lease = pair(desk)
    ticket = desk.preempt(10, lease)
    stage.held["A"] = 30.0
    stage.measure()
    assert desk.closed[ticket].error is None
    assert lease.limit_bytes == gib(20)


def test_donor_that_refuses_is_let_off_and_others_are_asked(desk: Desk) -> None:
    stage = worked(desk)
    lease = requester(stage, HIGH)
    ticket = desk.preempt(10, lease)
    donor = stage.leases["A"]
    desk.report(donor, ReportOutcome.REFUSED, achievable=0.9)
    assert donor.refused_floor is None
    stage.at(desk.now + 2.0)
    assert stage.orders() == "A10 B10"
    assert (donor.alive, donor.reclaim) == (True, None)
    stage.give("B")
    assert desk.closed[ticket].error is None
    desk.apply(donor)
    assert not stage.open


def test_bytes_of_a_donor_that_releases_itself_count_when_measured_gone(desk: Desk) -> None:
    stage, lease = pair(desk)
    ticket = desk.preempt(10, lease)
    desk.release(stage.leases["A"])
    assert stage.earmarked == 0.0
    stage.at(desk.now + 2.0)
    assert stage.open
    stage.measure_gone("A")
    assert desk.closed[ticket].error is None
    (donation,) = desk.plan_of(ticket).donations.values()
    assert donation.outcome is DonationOutcome.CONFIRMED


def test_what_an_ended_donor_still_holds_is_not_asked_of_others(desk: Desk) -> None:
    stage = worked(desk)
    lease = requester(stage, HIGH)
    desk.preempt(10, lease)
    desk.exit(1)
    assert stage.leases["A"].end_reason is EndReason.ORPHANED
    stage.at(desk.now + 3.0)
    assert stage.orders() == "A10"


def test_plan_ends_with_what_came_free_when_an_ended_donor_keeps_the_rest(desk: Desk) -> None:
    stage, lease = pair(desk)
    ticket = desk.preempt(30, lease, partial=True)
    desk.release(stage.leases["A"])
    stage.held["A"] = 20.0
    stage.measure()
    stage.at(desk.now + 14.0)
    assert desk.closed[ticket].error is None
    (donation,) = desk.plan_of(ticket).donations.values()
    assert (donation.outcome, donation.confirmed_bytes) == (DonationOutcome.PARTIAL, gib(20))
    assert lease.limit_bytes == gib(30)


def test_donor_is_asked_for_exactly_so_much_when_it_has_grown_by_preemption_itself(desk: Desk) -> None:
    """What preemption added is kept through a refusal and its end."""
    stage, lease = pair(desk, asks=NORMAL)
    desk.preempt(10, lease)
    stage.give("A")
    assert (lease.limit_bytes, lease.elastic.floor_bytes) == (gib(20), gib(20))
    stage.give("R")
    elastic = lease.elastic
    stage.hold("B", NORMAL, 12)
    desk.report(lease, ReportOutcome.REFUSED, achievable=1.0)
    stage.at(desk.now + 40.0)
    assert lease.elastic == elastic


def test_refused_target_keeps_what_preemption_added(desk: Desk) -> None:
    desk.box(40)
    donor = desk.take(wish("donor", 14, priority=BACKGROUND, floor=4, ttl=1000))
    lease = desk.take(wish("asks", 10, floor=2, priority=NORMAL, ttl=1000))
    desk.at(2.0)
    desk.preempt(4, lease)
    desk.apply(donor)
    assert lease.elastic.full_bytes == gib(14)
    desk.apply(lease)
    desk.take(wish("third", 10, priority=CRITICAL, ttl=1000))
    desk.at(3.0)
    ticket = desk.ask(wish("more", 8, priority=CRITICAL, wait=60, ttl=1000))
    assert desk.waits(ticket)
    assert lease.quality < 0.97
    desk.report(lease, ReportOutcome.REFUSED, achievable=0.97)
    assert lease.elastic.full_bytes == gib(14)
    assert lease.refused_floor == 0.97
    desk.at(60.0)
    assert lease.refused_floor is None
    assert (lease.elastic.full_bytes, lease.elastic.floor_bytes) == (gib(14), gib(6))


def test_donor_that_gave_goes_whole_when_the_rest_cannot_be_shed(desk: Desk) -> None:
    """The first of two sheds its part, the second dodges: all that is left is the rest of the first."""
    stage = Stage(desk, size=200)
    stage.hold("A", BACKGROUND, 30)
    stage.hold("B", BACKGROUND, 40)
    lease = requester(stage, HIGH)
    stage.at(40.0)
    ticket = desk.preempt(50, lease)
    assert stage.orders() == "B30 A20"
    stage.give("A")
    desk.ack(stage.leases["B"], done=False)
    stage.held["B"] -= 20.0
    stage.measure()
    desk.ack(stage.leases["B"])
    assert stage.earmarked == 40.0
    stage.at(42.0)
    assert stage.orders() == "B30 A30!"
    desk.release(stage.leases["A"])
    stage.measure_gone("A")
    assert desk.closed[ticket].error is None
    assert lease.limit_bytes == gib(60)


def test_quality_never_needs_more_than_the_limit_when_a_single_byte_is_taken(desk: Desk) -> None:
    """On a lease this large one byte is less than the noise that quality tolerates."""
    desk.box(10_000)
    donor = desk.take(wish("donor", 4000, priority=BACKGROUND, min_quality=0.0, ttl=1000))
    desk.at(2.0)
    asked = PreemptionRequest(need_bytes=gib(2000) + 1, device_id="box", priority=HIGH)
    desk.arbiter.preempt(asked, desk.now)
    desk.collect()
    assert donor.limit_bytes == gib(2000) - 1
    assert (donor.quality, donor.elastic.bytes_at(donor.quality) <= donor.limit_bytes) == (0.49, True)
