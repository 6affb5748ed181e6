"""Rules at the edges: what proves a reduction, who is spared, who goes when the machine is short, what stays told."""

from __future__ import annotations

from dataclasses import replace

from arbiter_sidecar.policy import capacity
from arbiter_sidecar.requests import ReclaimAck
from arbiter_sidecar.types import PressureLevel, Priority, ReportOutcome
from tests.arbiter.desk import LINEAR, Desk, gib, taking, wish
from tests.arbiter.preempting import BACKGROUND, CRITICAL, HIGH, Stage, requester, worked


def test_reduction_is_not_confirmed_when_the_sample_was_taken_before_it_was_published(desk: Desk) -> None:
    desk.card(24)
    lease = desk.take(wish("a", 12, pids=(1,), ttl=300))
    desk.sample({1: 12.0})
    desk.now = 1.0
    desk.sample({1: 12.0}, foreign=14.0)
    assert lease.limit_bytes < lease.charged_bytes == gib(12)
    desk.now = 1.1
    # The driver began to measure before the order: it may hold 12 by now.
    desk.sample({1: 5.0}, foreign=14.0, taken_at=0.9)
    assert lease.charged_bytes == gib(12)
    desk.sample({1: 5.0}, foreign=14.0)
    assert lease.charged_bytes == lease.limit_bytes


def test_donor_of_a_part_is_spared_until_a_while_after_the_end_of_its_plan(desk: Desk) -> None:
    stage = worked(desk)
    lease = requester(stage, HIGH)
    start = desk.now
    ticket = desk.preempt(10, lease)
    desk.ack(stage.leases["A"], done=False)
    stage.at(start + 2.0)
    assert stage.orders() == "A10 B10"
    desk.ack(stage.leases["B"], done=False)
    stage.at(start + 4.0)
    assert ticket in desk.closed
    plan = desk.arbiter.dry_preempt(taking(1, lease), desk.now)
    assert plan.reasons[stage.leases["A"].lease_id].value == "cooling_down"


def test_need_of_nothing_is_a_success_at_once(desk: Desk) -> None:
    stage = worked(desk)
    ticket = desk.preempt(0, requester(stage, HIGH))
    assert desk.closed[ticket].error is None


def test_startup_fence_holds_on_when_the_arbiter_was_away() -> None:
    desk = Desk(replace(LINEAR, pause_guard_s=1.5))
    desk.card(24)
    starter = desk.take(wish("a", 4, pids=(1,), window=60.0, ttl=10))
    desk.at(61.5)
    desk.sample({1: 1.0})
    assert starter.alive
    assert desk.waits(desk.ask(wish("b", 4, pids=(2,), wait=30)))


def test_silent_holder_goes_as_well_when_the_machine_is_short(desk: Desk) -> None:
    stage = Stage(desk, size=60)
    stage.hold("bg", BACKGROUND, 40, floor=40, ttl=300)
    stage.at(160.0)
    assert stage.leases["bg"].suspect
    stage.measure(foreign=40.0)
    assert stage.open


def test_level_falls_with_the_pressure_when_a_person_has_memory_given_back(desk: Desk) -> None:
    box = desk.box(16)
    lease = desk.take(wish("a", 15, ttl=300))
    desk.apply(lease)
    desk.at(2.0)
    before = box.pressure
    assert box.level is capacity.level(PressureLevel.LOW, before)
    desk.preempt(6, device="box", priority=CRITICAL)
    desk.apply(lease)
    assert box.pressure < before
    assert box.level is capacity.level(box.level, box.pressure)


def test_level_falls_with_the_pressure_when_one_of_two_applies(desk: Desk) -> None:
    box = desk.box(16)
    first = desk.take(wish("a", 9, ttl=300, priority=Priority.BACKGROUND))
    desk.take(wish("b", 6, ttl=300, priority=Priority.LOW))
    assert first.charged_bytes > first.limit_bytes
    desk.apply(first)
    assert box.level is capacity.level(box.level, box.pressure)


def test_ceiling_does_not_rise_when_samples_tell_nothing(desk: Desk) -> None:
    device = desk.card(36)
    desk.sample({}, foreign=12.0)
    desk.sample({}, foreign=0.0)
    assert device.ceiling_bytes == gib(27)
    for _ in range(50):
        desk.sample({}, foreign=None, used=None)
    assert device.ceiling_bytes == gib(27)


def test_nobody_goes_for_a_newcomer_when_a_worker_starts(desk: Desk) -> None:
    stage = Stage(desk, size=60)
    stage.hold("bg", BACKGROUND, 40, floor=40)
    stage.at(31.0)
    desk.take(wish("starter", 15, rigid=True, pids=(8,), window=60.0, ttl=1000, priority=HIGH))
    ticket = desk.ask(wish("new", 20, rigid=True, pids=(9,), wait=100, priority=HIGH, may_preempt=True))
    assert desk.waits(ticket)
    assert not stage.open


def test_only_the_one_that_room_is_made_for_says_so(desk: Desk) -> None:
    desk.box(24)
    desk.take(wish("a", 20, ttl=300))
    first = desk.books.queue.of(desk.ask(wish("b", 18, wait=60)))
    assert first is not None
    assert first.reclaiming
    second = desk.books.queue.of(desk.ask(wish("c", 18, wait=60, priority=HIGH)))
    assert second is not None
    assert (second.reclaiming, first.reclaiming) == (True, False)


def test_cost_of_waking_is_measured_when_a_donor_comes_back(desk: Desk) -> None:
    stage = Stage(desk, size=100)
    stage.hold("A", BACKGROUND, 40)
    lease = requester(stage, HIGH)
    ticket = desk.preempt(10, lease)
    stage.give("A")
    assert desk.closed[ticket].error is None
    desk.release(lease)
    stage.measure_gone("R")
    stage.at(desk.now + 30.0)
    stage.held["A"] = 40.0
    stage.measure()
    desk.apply(stage.leases["A"])
    assert stage.leases["A"].wake_cost_s > 0.0


def test_peak_and_critical_entries_are_kept_when_the_device_is_empty_again(desk: Desk) -> None:
    box = desk.box(16)
    lease = desk.take(wish("a", 15, rigid=True))
    assert (box.peak_bytes, desk.books.stats.critical_entries) == (gib(15), 1)
    desk.release(lease)
    desk.at(100.0)
    assert box.level is PressureLevel.LOW
    assert (box.peak_bytes, desk.books.stats.critical_entries) == (gib(15), 1)


def test_answer_to_an_order_frees_no_more_than_that_order_asked(desk: Desk) -> None:
    """The holder answers the order that it has seen; a lower target that was published since it knows nothing of."""
    desk.box(60)
    donor = desk.take(wish("donor", 40, floor=5, priority=BACKGROUND, ttl=1000))
    lease = desk.take(wish("asks", 10, rigid=True, priority=HIGH, ttl=1000))
    desk.apply(donor)
    desk.at(2.0)
    desk.preempt(5, lease, grace=30.0)
    seen, ordered = donor.revision, donor.limit_bytes
    desk.ask(wish("new", 25, rigid=True, priority=HIGH, wait=60, ttl=1000))
    assert donor.limit_bytes < ordered
    assert donor.reclaim is not None
    acks = (ReclaimAck(reclaim_id=donor.reclaim.reclaim_id, done=True),)
    desk.report(donor, ReportOutcome.NONE, revision=seen, acks=acks)
    assert donor.charged_bytes == ordered


def test_nobody_is_asked_to_go_when_nobody_holds_anything_the_machine_could_have(desk: Desk) -> None:
    device = desk.card(24)
    lease = desk.take(wish("a", 4, min_quality=0.0, pids=(1,), ttl=300))
    keeps = desk.take(wish("b", 4, rigid=True, pids=(2,), ttl=300))
    desk.sample({1: 0.0, 2: 4.0})
    desk.release(keeps)
    desk.live(11.0, held={1: 0.0, 2: 4.0})
    desk.sample({1: 0.0, 2: 4.0}, foreign=30.0)
    assert device.shortage_bytes(desk.now) == gib(4)
    assert (lease.quality, lease.alive, device.plan) == (0.0, True, None)
