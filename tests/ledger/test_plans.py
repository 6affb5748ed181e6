"""The book of preemptions: what counts as given, and for how long a plan has something to wait for."""

from __future__ import annotations

from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.plans import Donation, Plan
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import DeviceId, DonationOutcome, EndReason, LeaseId, Priority, ReclaimLevel, WorkloadType

BOX = DeviceId("box")


def lease(charged: int, measured: int | None = None) -> Lease:
    """A lease of so many bytes."""
    request = AllocationRequest(holder="w", workload=WorkloadType.OTHER, memory_bytes=charged)
    made = Lease(lease_id=LeaseId("a"), handle=1, fence=1, device_id=BOX, request=request, now=0.0)
    made.charged_bytes, made.measured_bytes = charged, measured
    return made


def donation(donor: Lease, planned: int, *, whole: bool = False) -> Donation:
    """An order for so many bytes within two seconds."""
    return Donation(reclaim_id="r1", lease=donor, planned_bytes=planned, whole=whole, now=10.0, grace_s=2.0)


def plan(need: int, *donations: Donation, machine: bool = False) -> Plan:
    """A plan with these donations."""
    made = Plan(
        plan_id="p",
        device_id=BOX,
        requester=None,
        waiter=None,
        priority=Priority.HIGH,
        need_bytes=need,
        partial=False,
        machine=machine,
        grace_s=2.0,
        deadline=24.0,
    )
    made.donations = {str(number): each for number, each in enumerate(donations)}
    return made


def test_confirmed_never_falls_when_the_donor_takes_back() -> None:
    donor = lease(100, 100)
    given = donation(donor, 30)
    donor.charged_bytes, donor.measured_bytes = 70, 85
    assert (given.observe(), given.confirmed_bytes, given.short_bytes) == (15, 15, 15)
    donor.measured_bytes = 95
    assert (given.observe(), given.confirmed_bytes) == (0, 15)
    donor.measured_bytes = 20
    assert (given.observe(), given.confirmed_bytes, given.short_bytes) == (15, 30, 0)


def test_shrinking_does_not_count_when_the_minimum_is_wanted() -> None:
    donor = lease(100)
    given = donation(donor, 40, whole=True)
    donor.charged_bytes = 40
    assert given.observe() == 0
    donor.end_reason, donor.residue_bytes = EndReason.RELEASED, 10
    assert (given.observe(), given.short_bytes) == (30, 10)


def test_what_was_given_counts_on_when_more_is_asked() -> None:
    donor = lease(100)
    given = donation(donor, 30)
    donor.charged_bytes = 70
    given.observe()
    given.level, given.acknowledged, given.outcome = ReclaimLevel.HARD, True, DonationOutcome.CONFIRMED
    given.extend(reclaim_id="r2", more_bytes=20, whole=False, now=12.0, grace_s=2.0)
    assert (given.reclaim_id, given.planned_bytes, given.confirmed_bytes, given.deadline) == ("r2", 50, 30, 14.0)
    assert (given.level, given.acknowledged, given.outcome) == (ReclaimLevel.SOFT, False, DonationOutcome.OPEN)
    donor.charged_bytes = 50
    assert (given.observe(), given.short_bytes) == (20, 0)


def test_plan_has_something_to_wait_for_while_a_donor_is_asked_or_an_ended_one_holds_bytes() -> None:
    asked, let_off = donation(lease(100), 30), donation(lease(100), 30)
    let_off.outcome = DonationOutcome.PARTIAL
    assert not plan(60, asked, let_off).spent
    asked.outcome = DonationOutcome.REVOKED
    asked.lease.end_reason, asked.lease.residue_bytes = EndReason.PREEMPTED, 100
    assert not plan(60, asked, let_off).spent
    asked.lease.residue_bytes = 0
    asked.observe()
    settled = plan(60, asked, let_off)
    assert (settled.spent, settled.confirmed_bytes, settled.short_bytes) == (True, 30, 30)


def test_every_deadline_moves_when_the_arbiter_was_away() -> None:
    one, other = donation(lease(100), 30), donation(lease(100), 30)
    away = plan(60, one, other)
    away.delay(5.0)
    assert away.deadline == 29.0
    assert {(each.asked_at, each.deadline) for each in (one, other)} == {(15.0, 17.0)}


def test_only_whole_leases_help_when_everybody_is_at_the_minimum() -> None:
    assert plan(1, machine=True).whole
    assert not plan(1).whole
